"""What places jobs; an executor never knows what a job means."""

"""Efficiency: latency, memory, answers."""

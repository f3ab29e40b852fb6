"""What places jobs; an executor never knows what a job means.

An executor is opened for a bench, `with serial(bench) as place:`, and `place(jobs, settle)` does every job once, under
its lock; those that another invocation is at come last. `settle(job, result)` is called in this process as each ends:
`result()` is its `Done`, or raises what went wrong.
"""

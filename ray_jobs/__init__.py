"""What runs inside a cluster: the driver of a run, `python -m ray_jobs.run_plan`, and what it leaves in the store."""

"""The executor whose attempts run in a Slurm cluster: as jobs, or by agents that are jobs."""

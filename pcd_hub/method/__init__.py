"""The paper: everything here knows torch and nothing else."""

"""Where jobs are done: in this process or a few beside it, on a Ray cluster, or by Slurm."""

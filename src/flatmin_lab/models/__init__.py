"""Networks of the tasks, one file an architecture."""

"""Data of the tasks, one file a source; every split is a function of the seed alone."""

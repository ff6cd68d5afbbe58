"""One training run: its configuration, its folder, its checkpoint, and the processes that share it."""

"""Two ranks equal one process: penalty and projection under FSDP2, HSDP and DDP (what runs is in sharded.py)."""

from launch import require_success


def test_two_ranks_equal_one_process(tmp_path):
    require_success("regularizers/sharded.py", tmp_path)

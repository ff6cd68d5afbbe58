"""A monitor under DistributedDataParallel reads what one process reads. What runs is in monitor_ranks.py."""

import pytest

from launch import require_success


@pytest.mark.slow
def test_two_ranks_read_what_one_process_reads(tmp_path):
    require_success("measures/monitor_ranks.py", tmp_path)

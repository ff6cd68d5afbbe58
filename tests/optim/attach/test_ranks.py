"""Two ranks under DDP and FSDP2 (what runs is in tests/attach_ranks.py)."""

import pytest

from launch import require_success


@pytest.mark.loop("DDP", "FSDP2", "DDP, no_sync", "independent noise", "antithetic noise", method="attach")
def test_two_ranks(tmp_path):
    require_success("attach_ranks.py", tmp_path)

"""The frameworks under DistributedDataParallel on two ranks equal one process. What runs is in ranks.py."""

import importlib.util

import pytest

from launch import launch

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("framework", ["transformers", "accelerate", "lightning"])
def test_two_ranks_equal_one_process(framework, tmp_path):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    ended = launch("integrations/ranks.py", framework, tmp_path)
    assert all(status == 0 for status, _ in ended), "\n".join(output for _, output in ended)

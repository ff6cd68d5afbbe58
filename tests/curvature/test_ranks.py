"""Two ranks equal one process: data or vectors split over ranks, sharded models (what runs is in over_ranks.py)."""

import pytest
import torch
from torch.nn import functional

from curvature_cases import data, mlp
from flatmin.curvature import Hessian
from flatmin.curvature.ranks import DataOverRanks, VectorsOverRanks
from flatmin.errors import ArgumentTypeError, RankError
from launch import require_success


def test_two_ranks_equal_one_process(tmp_path):
    require_success("curvature/over_ranks.py", tmp_path)


@pytest.mark.parametrize("kind", [DataOverRanks, VectorsOverRanks])
def test_messages(kind):
    with pytest.raises(RankError, match=r"not initialised.*torchrun"):
        kind(Hessian(mlp().double(), functional.cross_entropy, data()))
    with pytest.raises(ArgumentTypeError, match=r"is a Tensor, but one made of a model.*Hessian\("):
        kind(torch.eye(3))

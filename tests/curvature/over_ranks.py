"""What runs on each of two ranks (gloo, CPU): curvature with data or vectors split over them, against one process."""

import copy
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from curvature_cases import data, mlp
from flatmin.curvature import Hessian, top_eigenvalues, trace
from flatmin.curvature.operators import GGN, EmpiricalFisher, ForwardOnlyGGN, ForwardOnlyHessian, FunctionalHessian
from flatmin.curvature.ranks import DataOverRanks, VectorsOverRanks
from flatmin.errors import ArgumentTypeError, NonFiniteError, RankError
from flatmin.measures import perturbation_gap
from flatmin.measures.perturbation_trace import perturbation_trace

KINDS = (Hessian, GGN, EmpiricalFisher, FunctionalHessian)
BATCHES = data(sizes=(7, 5, 6, 2, 4))  # three batches, 17 examples, for the first rank; two, 7, for the second
EXACT = {"rtol": 1e-12, "atol": 1e-13}
CE = functional.cross_entropy


def mine(rank):
    return BATCHES[::2] if rank == 0 else BATCHES[1::2]


def net():
    torch.manual_seed(0)
    return mlp(nn.Tanh).double()


def signs(m, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (2 * torch.randint(0, 2, (38, m), generator=g) - 1).double()


def data_are_split(rank):
    model = DistributedDataParallel(net())
    for kind in KINDS:
        together, alone = DataOverRanks(kind(model, CE, mine(rank))), kind(net(), CE, BATCHES)
        torch.testing.assert_close(together @ signs(3), alone @ signs(3), **EXACT)
        torch.testing.assert_close(together @ signs(1)[:, 0], alone @ signs(1)[:, 0], **EXACT)
        torch.testing.assert_close(together.quadratic_forms(signs(3)), alone.quadratic_forms(signs(3)), **EXACT)
    H = Hessian(model, CE, mine(rank))
    R = DataOverRanks(H - H.related(GGN))
    torch.testing.assert_close(R @ signs(2), FunctionalHessian(net(), CE, BATCHES) @ signs(2), rtol=1e-9, atol=1e-12)
    block = DataOverRanks(H).block("b.*")
    torch.testing.assert_close(block @ signs(2)[:18], Hessian(net(), CE, BATCHES).block("b.*") @ signs(2)[:18], **EXACT)


def estimators_work_over_ranks(rank):
    alone = Hessian(net(), CE, BATCHES)
    for H in (DataOverRanks(Hessian(net(), CE, mine(rank))), VectorsOverRanks(Hessian(net(), CE, BATCHES))):
        ours, theirs = (trace(A, 20, seed=1, method="hutchinson") for A in (H, alone))
        assert ours.value == pytest.approx(theirs.value, rel=1e-10)
        assert ours.num_matvecs == theirs.num_matvecs
        assert "over 2 ranks" in ours.route
        top = top_eigenvalues(H, k=3, seed=0).values
        torch.testing.assert_close(top, top_eigenvalues(alone, k=3, seed=0).values, rtol=1e-9, atol=0)


def vectors_are_split(rank):
    H = Hessian(net(), CE, BATCHES)
    expected = H @ signs(5)
    before = H.gradients
    torch.testing.assert_close(VectorsOverRanks(H) @ signs(5), expected, **EXACT)
    assert H.gradients - before == pytest.approx(1 + 2 * (3 if rank == 0 else 2))
    forms = VectorsOverRanks(H).quadratic_forms(signs(5))
    torch.testing.assert_close(forms, H.quadratic_forms(signs(5)), **EXACT)
    vector = signs(1)[:, 0]
    torch.testing.assert_close(VectorsOverRanks(H) @ vector, H @ vector, **EXACT)
    F = ForwardOnlyHessian(net(), CE, BATCHES, step=1e-3)
    torch.testing.assert_close(VectorsOverRanks(F).quadratic_forms(signs(5)), F.quadratic_forms(signs(5)), **EXACT)


def forward_passes_over_ranks(rank):
    for kind in (ForwardOnlyHessian, ForwardOnlyGGN):
        together = DataOverRanks(kind(DistributedDataParallel(net()), CE, mine(rank), step=1e-3))
        alone = kind(net(), CE, BATCHES, step=1e-3)
        torch.testing.assert_close(together.quadratic_forms(signs(3)), alone.quadratic_forms(signs(3)), **EXACT)
    options = {"sigma": 0.1, "num_samples": 6}
    alone = perturbation_gap(net(), CE, BATCHES, **options)
    together = perturbation_gap(net(), CE, mine(rank), group=dist.group.WORLD, **options)
    torch.testing.assert_close(together.samples, alone.samples, **EXACT)
    assert together.clean_loss == pytest.approx(alone.clean_loss, rel=1e-14)
    together = perturbation_trace(net(), CE, mine(rank), group=dist.group.WORLD, **options)
    torch.testing.assert_close(
        together.samples, perturbation_trace(net(), CE, BATCHES, **options).samples, rtol=1e-9, atol=0
    )


def sharded_models(rank, mesh=None):
    """As many batches on each rank, of other sizes: forward passes of a sharded model are made together."""
    model = net()
    fully_shard(model.a, mesh=mesh)
    fully_shard(model, mesh=mesh)
    with torch.no_grad():
        model(BATCHES[0][0])  # leaves the root gathered
    chosen = ForwardOnlyHessian(model, CE, BATCHES[2 * rank : 2 * rank + 2])
    held = {n: p.to_local().clone() for n, p in chosen.risk.parameters.items()}
    own, batches = BATCHES[2 * rank : 2 * rank + 2], BATCHES[:4]
    for kind in (ForwardOnlyHessian, ForwardOnlyGGN):
        together, alone = kind(model, CE, own, step=1e-3), kind(net(), CE, batches, step=1e-3)
        torch.testing.assert_close(together.quadratic_forms(signs(3)), alone.quadratic_forms(signs(3)), **EXACT)
    exact = (signs(4) * (Hessian(net(), CE, batches) @ signs(4))).sum(0)
    torch.testing.assert_close(chosen.quadratic_forms(signs(4)), exact, rtol=1e-5, atol=1e-8)
    assert trace(chosen, 12, method="hutchinson").value == pytest.approx(
        trace(Hessian(net(), CE, batches), 12, method="hutchinson").value, rel=1e-5
    )
    gap = perturbation_gap(model, CE, own, sigma=0.1, num_samples=5)
    torch.testing.assert_close(
        gap.samples, perturbation_gap(net(), CE, batches, sigma=0.1, num_samples=5).samples, **EXACT
    )
    for name, p in chosen.risk.parameters.items():
        assert torch.equal(p.to_local(), held[name])
    with pytest.raises(ArgumentTypeError, match=r"'a.weight' is split over ranks.*ForwardOnlyHessian"):
        Hessian(model, CE, own)
    with pytest.raises(ArgumentTypeError, match=r"the model is sharded.*Leave VectorsOverRanks out"):
        VectorsOverRanks(chosen)


def what_fails_on_one_rank_fails_on_all(rank):
    poisoned = copy.deepcopy(mine(rank))
    if rank == 1:
        poisoned[0][0][0, 0] = torch.nan
    error, message = (NonFiniteError, "loss of batch 0 is nan") if rank == 1 else (RankError, "another rank failed")
    with pytest.raises(error, match=message):
        DataOverRanks(Hessian(net(), CE, poisoned)) @ signs(1)
    with pytest.raises(error, match=message):
        perturbation_gap(net(), CE, poisoned, sigma=0.1, num_samples=2, group=dist.group.WORLD)
    with pytest.raises(RankError, match=r"2 ranks multiply the DataOverRanks by different vectors.*same seed"):
        trace(DataOverRanks(Hessian(net(), CE, mine(rank))), 20, seed=rank)
    with pytest.raises(ArgumentTypeError, match=r"made of 2 sets of data.*H\.related\(GGN\)"):
        DataOverRanks(Hessian(net(), CE, mine(rank)) - GGN(net(), CE, mine(rank)))


def main(rank, world, address):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=world)
    try:
        data_are_split(rank)
        estimators_work_over_ranks(rank)
        vectors_are_split(rank)
        forward_passes_over_ranks(rank)
        sharded_models(rank)
        sharded_models(rank, init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard")))
        what_fails_on_one_rank_fails_on_all(rank)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

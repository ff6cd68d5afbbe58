"""Displace and restore: bitwise, in every floating type, from every kind of displacement, in place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatmin import Gaussian
from flatmin.perturb import STAY, Displacer, Draw, realize
from flatmin.streams import Stream
from flatmin.vectors import PerParameter, Vector

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (), (5,), (2, 3, 3, 3), (0, 2)]
    return {i: torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for i, s in enumerate(shapes)}


@given(
    dtype=st.sampled_from(DTYPES),
    scale=st.floats(1e-6, 1e3),
    moves=st.lists(st.sampled_from(["draw", "mirror", "vector", "stay", "restore"]), min_size=1, max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_any_sequence_of_moves_ends_where_it_began(dtype, scale, moves):
    params = parameters(dtype)
    before = {i: p.detach().clone() for i, p in params.items()}
    pointers = {i: p.data_ptr() for i, p in params.items()}
    displacer = Displacer(params)
    for number, move in enumerate(moves):
        if move == "restore":
            displacer.restore()
        elif move == "vector":
            displacer.displace(Vector({0: torch.full((3, 4), scale, dtype=dtype)}))
        elif move == "mirror" and isinstance(displacer.at, Draw):
            displacer.displace(-displacer.at)
        else:
            displacer.displace(STAY if move == "stay" else scale * Draw(Gaussian(), Stream(0, (number,))))
    displacer.release()
    assert all(torch.equal(p, before[i]) for i, p in params.items())
    assert pointers == {i: p.data_ptr() for i, p in params.items()}  # changed in place, never rebound


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_displacement_is_the_draw(dtype):
    params = parameters(dtype)
    before = {i: p.detach().clone() for i, p in params.items()}
    u = PerParameter((0.1, 0.2, 0.0, 0.3, 0.4)) * Draw(Gaussian(), Stream(1, (2, 3)))
    noise = realize(u, params)
    assert set(noise.tensors) == {0, 1, 3, 4}
    displacer = Displacer(params)
    displacer.displace(u)
    for i, p in params.items():
        expected = before[i] + noise.tensors[i] if i in noise.tensors else before[i]
        # alpha * noise is rounded once where it is added, twice where it is realized first
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)
    displacer.release()


@pytest.mark.parametrize("chunk", [1, 20, 10**6])
def test_alignments_are_with_what_really_happened_a_bounded_number_of_elements_at_a_time(chunk, monkeypatch):
    monkeypatch.setattr("flatmin.perturb.displace._CHUNK", chunk)
    params = parameters(torch.bfloat16)
    before = {i: p.detach().clone() for i, p in params.items()}
    gradients = {i: torch.ones_like(p) * (i + 1) for i, p in params.items() if i != 3}
    displacer = Displacer(params)
    assert displacer.alignments(gradients) == {}
    displacer.displace(0.01 * Draw(Gaussian(), Stream(0)))
    found = displacer.alignments(gradients)
    assert found.keys() == gradients.keys()
    for i, value in found.items():
        moved = (params[i].detach() - before[i]).double()
        torch.testing.assert_close(value, (i + 1) * moved.sum(), rtol=1e-5, atol=1e-6)
    displacer.release()
    assert displacer.alignments(gradients) == {}


def test_many_pairs_do_not_drift_in_bf16():
    """Adding and subtracting drifts by percents here; a copy does not."""
    w = {0: torch.nn.Parameter(torch.linspace(-1, 1, 257).bfloat16())}
    before = w[0].detach().clone()
    for step in range(200):
        displacer = Displacer(w)
        u = 0.01 * Draw(Gaussian(), Stream(0, (step,)))
        displacer.displace(u)
        displacer.displace(-u)
        displacer.release()
    assert torch.equal(w[0].detach(), before)


def test_a_failure_half_way_is_undone():
    class Breaks:
        def __init__(self):
            self.calls = 0

        def sample_(self, out, generator):
            self.calls += 1
            if self.calls == 3:
                raise MemoryError
            return out.fill_(1.0)

    params = parameters()
    before = {i: p.detach().clone() for i, p in params.items()}
    displacer = Displacer(params)
    with pytest.raises(MemoryError):
        displacer.displace(1.0 * Draw(Breaks(), Stream(0)))
    displacer.release()
    assert all(torch.equal(p, before[i]) for i, p in params.items())

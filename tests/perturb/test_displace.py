"""Displace and restore: bitwise, in every floating type, from every kind of displacement, in place."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatmin import Gaussian
from flatmin.noise import LAWS
from flatmin.perturb import STAY, Displacer, Draw, Snapshots, realize
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


@pytest.mark.parametrize("then", ["stay", "reflect", "restore"])
@pytest.mark.parametrize("piece", [1, 20, 10**6])
def test_alignments_are_with_what_really_happened_whatever_the_pieces_and_move_as_they_say(piece, then, monkeypatch):
    monkeypatch.setattr("flatmin.perturb.sweeps.PIECE", piece)
    params = parameters(torch.bfloat16)
    before = {i: p.detach().clone() for i, p in params.items()}
    gradients = {i: torch.ones_like(p) * (i + 1) for i, p in params.items() if i != 3}
    displacer = Displacer(params)
    assert displacer.alignments(gradients, then=then) == {}
    u = 0.01 * Draw(Gaussian(), Stream(0))
    displacer.displace(u)
    there = {i: p.detach().clone() for i, p in params.items()}
    found = displacer.alignments(gradients, then=then)
    assert found.keys() == gradients.keys()
    for i, value in found.items():
        moved = (there[i] - before[i]).double()
        torch.testing.assert_close(value, (i + 1) * moved.sum(), rtol=1e-5, atol=1e-6)
    assert displacer.at == {"stay": u, "reflect": -u, "restore": STAY}[then]
    expected = {"stay": there, "reflect": {i: 2 * before[i] - there[i] for i in params}, "restore": before}[then]
    for i, p in params.items():
        assert torch.equal(p.detach(), expected[i])
    displacer.release()
    assert displacer.alignments(gradients) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_alignments_of_any_order_in_memory(dtype, monkeypatch):
    monkeypatch.setattr("flatmin.perturb.sweeps.PIECE", 50)
    w = torch.nn.Parameter(torch.randn(8, 6, 3, 3, dtype=dtype).to(memory_format=torch.channels_last))
    alike, other = torch.randn_like(w), torch.randn(8, 6, 3, 3, dtype=dtype)
    before = w.detach().clone()
    displacer = Displacer({0: w})
    displacer.displace(0.01 * Draw(Gaussian(), Stream(0)))
    for gradient, then in ((alike, "stay"), (other, "reflect"), (alike, "restore")):
        expected = ((w.detach() - before) * gradient).sum(dtype=torch.float64)
        torch.testing.assert_close(displacer.alignments({0: gradient}, then=then)[0], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(w.detach(), before)


def many(number=5):
    return {i: torch.nn.Parameter(torch.full((2**17 + i,), float(i))) for i in range(number)}


@pytest.mark.parametrize("name", ["gaussian", "rademacher", "uniform"])
def test_one_seed_gives_one_perturbation_whatever_the_number_of_threads(name):
    u, threads = 0.1 * Draw(LAWS[name], Stream(1, (2, 3))), torch.get_num_threads()
    expected = realize(u, many())
    found = {1: many(), 2: many(), 4: many()}
    try:
        for count, params in found.items():
            torch.set_num_threads(count)
            Displacer(params).displace(u)
    finally:
        torch.set_num_threads(threads)
    for i, noise in expected.tensors.items():
        torch.testing.assert_close(found[1][i].detach() - i, noise, rtol=0, atol=1e-6)
        assert torch.equal(found[1][i], found[2][i])
        assert torch.equal(found[1][i], found[4][i])


def test_a_law_that_does_not_say_so_is_never_called_from_another_thread():
    class Own:
        def __init__(self):
            self.calls = []

        def sample_(self, out, generator):
            self.calls.append((threading.current_thread(), out.numel()))
            return out.fill_(1.0)

    law = Own()
    Displacer(many()).displace(1.0 * Draw(law, Stream(0)))
    assert law.calls == [(threading.main_thread(), 2**17 + i) for i in range(5)]


def test_a_failure_in_a_thread_is_undone():
    class Breaks(Gaussian):
        def sample_(self, out, generator):
            if generator.initial_seed() == stream.generator(2, cpu).initial_seed():
                raise MemoryError
            return super().sample_(out, generator)

    cpu, stream, threads = torch.device("cpu"), Stream(0), torch.get_num_threads()
    params = many()
    displacer = Displacer(params)
    try:
        torch.set_num_threads(3)
        with pytest.raises(MemoryError):
            displacer.displace(1.0 * Draw(Breaks(), stream))
    finally:
        torch.set_num_threads(threads)
    displacer.release()
    assert all(torch.equal(p, many()[i]) for i, p in params.items())


def test_the_memory_of_a_snapshot_is_used_again_where_it_fits():
    kept = Snapshots()
    tensors = [torch.ones(3, 4), torch.ones(5)]
    first = kept.take(tensors)
    addresses = [copy.data_ptr() for copy in first]
    assert [c.data_ptr() for c in kept.take(tensors)] != addresses  # those are in use
    kept.give_back(first)
    again = kept.take([2 * t for t in tensors])
    assert [copy.data_ptr() for copy in again] == addresses
    assert all(bool((copy == 2).all()) for copy in again)
    kept.give_back(again)
    for others in ([torch.ones(4, 3), torch.ones(5)], [torch.ones(3, 4)], [t.double() for t in tensors]):
        copies = kept.take(others)
        assert all(torch.equal(copy, other) for copy, other in zip(copies, others))
        assert copies[0].dtype == others[0].dtype


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

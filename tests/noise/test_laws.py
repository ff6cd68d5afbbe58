"""The contract of every law: mean zero, variance one, symmetric, independent; and its own kurtosis."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.noise import LAWS, Binomial, Gaussian, Rademacher, resolve_law
from flatmin.noise.pieces import CHEAP_PIECE, PIECE, bounds
from flatmin.streams import Stream

KURTOSIS = {"gaussian": 3.0, "laplace": 6.0, "uniform": 1.8, "rademacher": 1.0, "binomial": 2.5}
SIXTH = {"gaussian": 15.0, "laplace": 90.0, "uniform": 27 / 7, "rademacher": 1.0, "binomial": 8.5}
EIGHTH = {"gaussian": 105.0, "laplace": 2520.0, "uniform": 9.0, "rademacher": 1.0, "binomial": 32.5}
every_law = pytest.mark.parametrize("name", LAWS)
N = 200_000


def draws(law, n=N, seed=0, dtype=torch.float64):
    return law.sample_(torch.empty(n, dtype=dtype), torch.Generator().manual_seed(seed))


@every_law
def test_moments_within_four_standard_errors(name):
    x = draws(LAWS[name])
    for power, expected, square in (
        (1, 0, 1),
        (2, 1, KURTOSIS[name]),
        (3, 0, SIXTH[name]),
        (4, KURTOSIS[name], EIGHTH[name]),
    ):
        stderr = math.sqrt(max(square - expected**2, 0) / N)
        assert abs(float((x**power).mean()) - expected) <= 4 * stderr + 1e-12, power


@every_law
def test_neighbours_are_independent(name):
    x = draws(LAWS[name])
    for lag in (1, 7, 8, 64):
        for transform in (lambda t: t, torch.square):
            a, b = transform(x[:-lag]), transform(x[lag:])
            if float(a.std()) == 0:
                continue
            assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 4 / math.sqrt(N), lag


@every_law
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 3, 4, 5), (1000,)])
def test_any_shape_and_type(name, dtype, shape):
    out = torch.empty(shape, dtype=dtype)
    returned = LAWS[name].sample_(out, torch.Generator().manual_seed(1))
    assert returned is out
    assert torch.isfinite(out).all()


@every_law
def test_a_strided_view_is_filled(name):
    whole = torch.full((6, 8), 99.0)
    LAWS[name].sample_(whole.t()[::2], torch.Generator().manual_seed(1))
    assert (whole == 99).sum() == 24


@every_law
def test_the_seed_decides_and_the_global_generator_is_left_alone(name):
    before = torch.get_rng_state()
    assert torch.equal(draws(LAWS[name], 100, seed=3), draws(LAWS[name], 100, seed=3))
    assert not torch.equal(draws(LAWS[name], 100, seed=3), draws(LAWS[name], 100, seed=4))
    assert torch.equal(before, torch.get_rng_state())


@every_law
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "number", [1, 17, PIECE, PIECE + 3, PIECE + 16, 2 * PIECE + 5, 3 * PIECE - 1, CHEAP_PIECE + 17]
)
def test_pieces_of_a_sequential_law_are_the_whole(name, dtype, number):
    law = LAWS[name]
    if not getattr(law, "is_sequential", False):
        assert name in ("laplace", "binomial")
        return
    for piece in (PIECE, CHEAP_PIECE):
        generator, pieced = torch.Generator().manual_seed(0), torch.empty(number, dtype=dtype)
        for start, stop in bounds(number, piece):
            assert stop - start < piece + 16
            law.sample_(pieced[start:stop], generator)
        assert torch.equal(pieced, draws(law, number, dtype=dtype))


def test_rademacher_has_no_other_value_and_no_byte_structure():
    x = draws(Rademacher(), 80_000)
    assert set(x.tolist()) == {-1.0, 1.0}
    for position in range(8):
        assert abs(float(x[position::8].mean())) < 4 / 100  # 10,000 draws each


@given(n=st.integers(1, 9))
@settings(max_examples=9, deadline=None)
def test_binomial_is_centred_for_every_n(n):
    """The authors' Binomial(4, 1/2) keeps its mean of 2, which pushes every weight the same way."""
    x = draws(Binomial(n), 40_000)
    assert abs(float(x.mean())) < 4 / 200
    assert abs(float(x.square().mean()) - 1) < 4 * math.sqrt(2 / 40_000)
    assert set((x * math.sqrt(n)).round().long().tolist()) == set(range(-n, n + 1, 2))


def test_names_and_objects():
    assert resolve_law("gaussian") == Gaussian()
    law = Binomial(6)
    assert resolve_law(law) is law
    with pytest.raises(ArgumentError, match=r"noise is 'rademcher'.*Did you mean 'rademacher'"):
        resolve_law("rademcher")
    with pytest.raises(ArgumentError, match="no sigma scales it"):
        resolve_law("Cauchy")
    with pytest.raises(ArgumentTypeError, match="neither the name of a law nor an object"):
        resolve_law(3)
    with pytest.raises(ArgumentError, match="num_trials is 0"):
        Binomial(0)


def test_a_law_of_ones_own():
    import flatmin as fm

    class Signed:
        def sample_(self, out, generator):
            return out.fill_(1.0)

    w = torch.nn.Parameter(torch.zeros(3))
    opt = fm.NSO(torch.optim.SGD([w], lr=0.0), sigma=0.5, noise=Signed())
    seen = []
    for probe in opt.probes():
        with probe:
            seen.append(w[0].item())
            w.sum().backward()
    assert seen == [0.5, -0.5]


def test_streams_are_independent_over_steps_draws_and_parameters():
    cpu = torch.device("cpu")
    addresses = [(s, d, p) for s in range(4) for d in range(2) for p in range(4)]
    x = torch.stack(
        [Gaussian().sample_(torch.empty(5000), Stream(0, (s, d)).generator(p, cpu)) for s, d, p in addresses]
    )
    off = torch.corrcoef(x) - torch.eye(len(addresses))
    assert off.abs().max() < 5 / math.sqrt(5000)  # the largest of about 500: five standard errors
    assert torch.equal(x[0], Gaussian().sample_(torch.empty(5000), Stream(0, (0, 0)).generator(0, cpu)))


def test_seeds_of_one_stream_are_distinct_in_the_32_bits_that_the_cpu_generator_reads():
    stream = Stream(12345, (6, 7))
    seeds = {stream.generator(i, torch.device("cpu")).initial_seed() % 2**32 for i in range(5000)}
    assert len(seeds) == 5000

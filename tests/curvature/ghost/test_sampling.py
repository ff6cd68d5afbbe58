"""Many outputs: an exact head and a sampled tail, and what is refused."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from flatmin.curvature.ghost import ggn_trace
from flatmin.curvature.operators import GGN
from flatmin.errors import ArgumentError, ArgumentTypeError


def problem(classes=40, sizes=(12, 7), skew=0.0):
    g = torch.Generator().manual_seed(2)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, classes)).double()
    with torch.no_grad():
        model[2].bias -= skew * torch.arange(classes)
    batches = [
        (torch.randn(n, 6, generator=g, dtype=torch.float64), torch.randint(0, classes, (n,), generator=g))
        for n in sizes
    ]
    return GGN(model, functional.cross_entropy, batches)


def truth(G):
    matrix = G @ torch.eye(G.shape[0], dtype=torch.float64)
    return {name: float(matrix[part, part].trace()) for name, part in G.layout.slices.items()}


def test_exact_where_passes_suffice_and_sampled_where_not():
    G = problem()
    whole = sum(truth(G).values())
    exact = ggn_trace(G)
    assert exact.exact
    assert exact.num_matvecs == 39
    assert exact.value == pytest.approx(whole, rel=1e-9)
    sampled = ggn_trace(G, max_passes=12, rtol=1e-9)
    assert not sampled.exact
    assert sampled.seed == 0
    assert sampled.num_matvecs == 12
    assert 0 < sampled.stderr < 0.1 * whole
    assert abs(sampled.value - whole) < 4 * sampled.stderr


@pytest.mark.parametrize("skew", [0.0, 0.2])
def test_stderr_is_that_of_many_seeds(skew):
    G = problem(skew=skew)
    expected = truth(G)
    runs = [ggn_trace(G, max_passes=8, rtol=1e-9, seed=seed) for seed in range(60)]
    for name, value in (("", sum(expected.values())), *expected.items()):
        parts = [run.blocks[name] if name else run for run in runs]
        values = torch.tensor([p.value for p in parts], dtype=torch.float64)
        stderr = math.sqrt(sum(p.stderr**2 for p in parts) / len(parts))
        assert abs(float(values.mean()) - value) < 4 * float(values.std()) / math.sqrt(len(runs))
        assert float(values.std()) == pytest.approx(stderr, rel=4 / math.sqrt(2 * len(runs)))


def test_stderr_against_its_closed_form():
    # |Σ ±J's_k|² has the variance 2 (|K|² - Σ K_kk²), K being the Gram matrix of the J's_k. For one layer and squared
    # loss K is diagonal, so that the sample has no variance at all.
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    G = GGN(nn.Linear(3, 30).double(), functional.mse_loss, [(x, torch.zeros(9, 30).double())])
    t = ggn_trace(G, max_passes=5)
    assert not t.exact
    assert t.value == pytest.approx(sum(truth(G).values()), rel=1e-12)
    assert t.stderr == pytest.approx(0, abs=1e-12)


def test_stderr_against_its_closed_form_where_there_is_some():
    # One linear layer without bias and softmax: J's_k = s_k x', so that K = |x|² S'S for all the columns in the tail,
    # and S'S has the eigenvalues of diag(p) - pp'; four passes make one sample of everything at a time.
    x = torch.ones(400, 1, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(1, 200, bias=False).double()
    p = layer(x)[0].softmax(0).detach()
    S = _cholesky(p)
    K = S.T @ S
    variance = 2 * (K.square().sum() - K.diagonal().square().sum())
    t = ggn_trace(
        GGN(layer, functional.cross_entropy, [(x, torch.zeros(400, dtype=torch.long))]), max_passes=20, rtol=1e-9
    )
    assert t.num_matvecs == 20
    assert t.stderr == pytest.approx(float(variance / (400 * 20)) ** 0.5, rel=0.05)
    assert abs(t.value - float(K.trace())) < 4 * t.stderr


def _cholesky(p):
    """By elimination, in descending order."""
    p = p.sort(descending=True).values
    M, columns = torch.diag(p) - torch.outer(p, p), []
    for k in range(len(p) - 1):
        columns.append(M[:, k] / M[k, k].sqrt())
        M = M - torch.outer(columns[-1], columns[-1])
    return torch.stack(columns, dim=1)


def test_heavy_columns_are_taken_exactly():
    flat, skewed = (ggn_trace(problem(skew=skew), max_passes=12, rtol=1e-9) for skew in (0.0, 1.0))
    assert skewed.stderr / skewed.value < 0.2 * flat.stderr / flat.value


def test_a_tolerance_stops_early():
    G = problem(classes=100, sizes=(64,))
    loose, tight = (ggn_trace(G, rtol=rtol) for rtol in (0.1, 1e-3))
    assert loose.num_matvecs < tight.num_matvecs
    assert loose.stderr < 0.1 * loose.value
    assert abs(loose.value - sum(truth(G).values())) < 4 * loose.stderr


def test_signs_of_curvature_in_the_sample():
    G = problem()
    bent = GGN(G.risk.model, lambda z, y: (z * z.shape[1] ** 0.5).sin().mean(), [*G.risk._batches])
    expected = sum(truth(bent).values())
    values = [ggn_trace(bent, max_passes=8, rtol=1e-9, seed=seed) for seed in range(20)]
    mean = sum(t.value for t in values) / 20
    assert abs(mean - expected) < 4 * math.sqrt(sum(t.stderr**2 for t in values)) / 20


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        return self.second((x - x.mean(0)).relu())


def xy(n=6):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 3


@pytest.mark.parametrize("seed", range(10))  # in some, no gradient of the first examples gets to the first layer
def test_layers_before_examples_mix_are_left_out(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Mixing()
    G = GGN(model, functional.cross_entropy, [xy()])
    t = ggn_trace(G)
    assert t.covered == ("second.weight", "second.bias")
    assert t.uncovered == ("first.weight", "first.bias")
    assert "first.weight" in t.reason
    blocks = truth_32(G)
    assert t.value == pytest.approx(blocks["second.weight"] + blocks["second.bias"], rel=1e-4)


def truth_32(G):
    matrix = G @ torch.eye(G.shape[0])
    return {name: float(matrix[part, part].trace()) for name, part in G.layout.slices.items()}


def test_layers_that_no_gradient_reaches_are_zero():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    nn.init.zeros_(model[1].weight)  # as low-rank adapters and residual branches begin
    t = ggn_trace(GGN(model, functional.cross_entropy, [xy()]))
    assert t.uncovered == ()
    assert t.blocks["0.weight"].value == 0
    assert t.value > 0


def test_batch_statistics_mix_examples():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    t = ggn_trace(GGN(model, functional.cross_entropy, [xy()], mode="current"))
    assert t.covered == ("2.weight", "2.bias")
    assert t.curved == ()


def test_parameters_that_are_worked_on_first_are_left_out():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.ReLU(), nn.Linear(4, 3))
    t = ggn_trace(GGN(model, functional.cross_entropy, [xy()]))
    assert t.covered == ("0.bias", "2.weight", "2.bias")


def test_penalties_are_left_out():
    model = nn.Linear(6, 3)
    t = ggn_trace(GGN(model, lambda z, y: functional.cross_entropy(z, y) + model.weight.square().sum(), [xy()]))
    assert t.uncovered == ("weight",)
    assert "besides by the outputs" in t.reason


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda z, y: (z @ z.T).logsumexp(1).mean(), "no sum over examples"),
        (lambda z, y: functional.multi_margin_loss(z, y, p=2), "no second derivative"),
        (lambda z, y: z.sum(0).square().mean(), "no sum over examples"),
    ],
)
def test_losses_without_a_form(loss, reason):
    t = ggn_trace(GGN(nn.Linear(6, 3), loss, [xy()]))
    assert t.covered == ()
    assert t.value == 0
    assert t.uncovered == ("weight", "bias")
    assert reason in t.reason


def test_outputs_without_rows_for_examples():
    model = nn.Sequential(nn.Linear(6, 3), nn.Flatten(0))
    t = ggn_trace(GGN(model, lambda z, y: z.square().mean(), [xy()]))
    assert t.covered == ()
    assert "shape (18,), but the batch has 6 examples" in t.reason


def test_messages():
    G = GGN(nn.Linear(6, 3), functional.cross_entropy, [xy()])
    with pytest.raises(ArgumentError, match=r"max_passes is 3.*at least 4.*head"):
        ggn_trace(G, max_passes=3)
    with pytest.raises(ArgumentError, match=r"rtol is 0.*relative standard error"):
        ggn_trace(G, rtol=0)
    with pytest.raises(ArgumentTypeError, match="depends on no trainable parameter"):
        ggn_trace(GGN(nn.Linear(6, 3), lambda z, y: z.detach().sum(), [xy()]))


def test_shown():
    G = problem()
    assert repr(ggn_trace(G)).startswith("GGNTrace(")
    assert "exactly" in repr(ggn_trace(G))
    assert "±" in repr(ggn_trace(G, max_passes=8))
    penalized = GGN(G.risk.model, lambda z, y: z.square().mean() + G.risk.model[0].bias.square().sum(), G.risk._batches)
    assert "1 parameters uncovered" in repr(ggn_trace(penalized))

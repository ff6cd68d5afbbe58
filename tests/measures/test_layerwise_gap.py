"""Gaps of some parameters, and layer by layer, against closed forms."""

import pytest
import torch
from torch import nn

from curvature_cases import case, dense_hessian, everything
from flatmin.errors import ArgumentError
from flatmin.measures.gap import perturbation_gap
from flatmin.measures.layerwise_gap import layerwise_gap

SIGMA = 0.05


class Coupled(nn.Module):
    """f(a, b) = a'Aa/2 + b'Bb/2 + a'Cb + slopes: layers that know of each other."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        for name, shape in {"A": (4, 4), "B": (3, 3), "C": (4, 3)}.items():
            self.register_buffer(name, torch.randn(shape, generator=g, dtype=torch.float64))
        self.A += self.A.T.clone()
        self.B += self.B.T.clone()
        self.a = nn.Parameter(torch.randn(4, generator=g, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(3, generator=g, dtype=torch.float64))

    def forward(self, _):
        a, b = self.a, self.b
        return a @ self.A @ a / 2 + b @ self.B @ b / 2 + a @ self.C @ b + 7 * a.sum() - 5 * b.sum()


ONE = [(torch.zeros(1), torch.zeros(1))]


def value(output, _):
    return output


def gaps_of(model, **options):
    return layerwise_gap(model, value, ONE, **{"sigma": SIGMA, "groups": "parameter", **options})


def test_a_quadratic_has_the_gap_of_each_blocks_trace():
    """Mean σ²/2 tr A and variance σ⁴/2 ‖A‖² of a pair, whatever the slopes and the coupling C."""
    model = Coupled()
    gaps = gaps_of(model, num_samples=2000)
    for row, block in zip(gaps, (model.A, model.B), strict=True):
        assert abs(row.value - SIGMA**2 / 2 * float(block.trace())) < 4 * row.stderr
        assert float(row.estimate.samples.var()) == pytest.approx(SIGMA**4 / 2 * float(block.square().sum()), rel=0.15)
        assert (row.value, row.stderr, row.size) == (row.estimate.value, row.estimate.stderr, len(block))
    assert [row.name for row in gaps] == ["a", "b"]


def test_signs_are_exact_on_diagonal_blocks():
    model = Coupled()
    model.A, model.B = model.A.diag().diag(), model.B.diag().diag()
    gaps = gaps_of(model, num_samples=3, noise="rademacher")
    assert gaps["a"].value == pytest.approx(SIGMA**2 / 2 * float(model.A.trace()), rel=1e-9)
    assert gaps["b"].value == pytest.approx(SIGMA**2 / 2 * float(model.B.trace()), rel=1e-9)
    assert max(row.stderr for row in gaps) < 1e-12


def test_the_noise_of_a_parameter_is_the_same_alone_as_among_all():
    """On a quadratic each sample of the whole is then the sum of those of the layers and u_a' C u_b."""
    model = Coupled()
    gaps, whole = gaps_of(model, num_samples=5), perturbation_gap(model, value, ONE, sigma=SIGMA, num_samples=5)
    model.C.zero_()
    apart = perturbation_gap(model, value, ONE, sigma=SIGMA, num_samples=5)
    together = gaps["a"].estimate.samples + gaps["b"].estimate.samples
    torch.testing.assert_close(apart.samples, together, rtol=1e-8, atol=1e-12)
    assert not torch.allclose(whole.samples, together, rtol=1e-3)


def test_patterns_move_their_parameters_alone():
    model = Coupled()
    gaps = gaps_of(model, num_samples=4)
    for name in "ab":
        alone = perturbation_gap(model, value, ONE, sigma=SIGMA, num_samples=4, parameters=name)
        assert torch.equal(alone.samples, gaps[name].estimate.samples)
    everything_ = perturbation_gap(model, value, ONE, sigma=SIGMA, num_samples=4)
    both = perturbation_gap(model, value, ONE, sigma=SIGMA, num_samples=4, parameters=["a", "b"])
    assert torch.equal(both.samples, everything_.samples)
    with pytest.raises(ArgumentError, match=r"'\*.weight' fits no trainable parameter"):
        perturbation_gap(model, value, ONE, sigma=SIGMA, parameters="*.weight")
    with pytest.raises(ArgumentError, match="parameters is empty, so nothing would be moved"):
        perturbation_gap(model, value, ONE, sigma=SIGMA, parameters=[])


def test_layers_of_a_smooth_network_have_the_trace_of_their_block():
    model, loss_fn, batches = case("gelu")
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    H = dense_hessian(model, loss_fn, batches)
    ends, at = torch.tensor([dict(model.named_parameters())[n].numel() for n in names]).cumsum(0).tolist(), 0
    gaps = layerwise_gap(model, loss_fn, batches, sigma=1e-3, groups="parameter", num_samples=200)
    for row, end in zip(gaps, ends, strict=True):
        smoothed = row.estimate.trace
        assert abs(smoothed.value - float(H.diagonal()[at:end].sum())) < 4 * smoothed.stderr
        at = end


def test_groups_cost_and_print():
    model, loss_fn, batches = case("gelu")
    gaps = layerwise_gap(model, loss_fn, batches, sigma=0.01, groups={"weights": "*.weight"}, num_samples=3)
    assert [row.name for row in gaps] == ["weights", "rest"]
    assert gaps.num_matvecs == 6
    assert gaps.gradients == pytest.approx((1 + 2 * 6) / 3)  # a forward pass is a third of a gradient
    assert gaps["weights"].estimate.clean_loss == gaps["rest"].estimate.clean_loss
    assert repr(gaps).startswith("LayerwiseResult(gap of 2 layers")
    assert "share" not in str(gaps)


def test_nothing_is_left_changed():
    model, loss_fn, batches = case("conv, batch-norm, dropout", torch.bfloat16)
    model.train()
    before = everything(model)
    layerwise_gap(model, loss_fn, batches, sigma=0.1, num_samples=2, mode="current")
    assert everything(model) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 0.0}, "sigma is 0, but it must be above 0"),
        ({"num_samples": 1}, "num_samples is 1.*one has no standard error"),
        ({"seed": -1}, "seed is -1"),
        ({"groups": "layer"}, "groups is 'layer', but it must be one of 'module', 'parameter'"),
        ({"groups": {"one": "a", "two": "*"}}, "'a' fits the layers 'one' and 'two'"),
    ],
)
def test_messages(changes, message):
    with pytest.raises(ArgumentError, match=message):
        gaps_of(Coupled(), **changes)

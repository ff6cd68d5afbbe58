"""What the graph tells, against second derivatives."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from flatmin.curvature.ghost.linearity import bypassing, linearity

SMOOTH = [
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.Softplus,
    nn.Hardswish,
    lambda: nn.Softmax(1),
    lambda: nn.LayerNorm(4),
]
BENT = [
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Softshrink, nn.Hardshrink, nn.PReLU,
    lambda: nn.Threshold(0.1, 0.0), nn.Identity, nn.Dropout, lambda: nn.Unflatten(1, (2, 2)),
]  # fmt: skip
OPERATIONS = {
    "max": lambda x: x.amax(1, keepdim=True),
    "sort": lambda x: x.sort(1).values,
    "top": lambda x: x.topk(2).values,
    "where": lambda x: torch.where(x > 0, x, 2 * x),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "abs": lambda x: x.abs(),
    "maximum": lambda x: torch.maximum(x, -x),
    "interpolated": lambda x: functional.interpolate(x[:, None], scale_factor=2),
    "padded": lambda x: functional.pad(x, (1, 2)),
    "in place": lambda x: x.clone().mul_(2).relu_(),
    "rolled": lambda x: x.roll(1, 1).flip(1).cumsum(1),
    "matrices": lambda x: torch.einsum("ni,ij->nj", x, torch.eye(4, dtype=x.dtype)),
    "quotient": lambda x: x / 3 + 1 / 3,
}


def net(middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), middle, nn.Flatten(), nn.LazyLinear(2)).double().eval()


def second_derivatives(model, x):
    """Whether the diagonal block of each parameter vanishes for every output."""
    vanish = {}
    for name, parameter in model.named_parameters():

        def outputs(w, name=name):
            return torch.func.functional_call(model, {name: w}, (x,)).flatten()

        vanish[name] = not torch.func.hessian(outputs)(parameter.detach()).any()
    return vanish


class Op(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.filterwarnings("ignore::UserWarning")  # lazy modules
@pytest.mark.parametrize("middle", [*SMOOTH, *BENT, *(lambda f=f: Op(f) for f in OPERATIONS.values())])
def test_claims_are_those_of_second_derivatives(middle):
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        model = net(middle())
    z = model(x)
    found = linearity([z], dict(model.named_parameters()))
    assert found.reached == {name for name, _ in model.named_parameters()}
    for name, vanishes in second_derivatives(model, x).items():
        assert (name not in found.curved) == vanishes, name


def test_a_parameter_that_meets_itself_is_curved():
    w = nn.Parameter(torch.ones(2, 2))
    v = nn.Parameter(torch.ones(2, 2))
    weights = {"w": w, "v": v}
    x = torch.ones(1, 2)
    assert linearity([x @ w @ w], weights).curved == {"w"}
    assert linearity([x @ w @ v], weights).curved == set()
    assert linearity([x @ w + x @ w], weights).curved == set()
    assert linearity([x @ w * (x @ v).relu()], weights).curved == set()
    assert linearity([x / w[0] + v[0]], weights).curved == {"w"}
    assert linearity([(x @ w) @ (x @ v + w[0]).T], weights).curved == {"w"}


def test_batch_norm_is_linear_in_evaluation_mode_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.ones(5, 3)
    weights = dict(model.named_parameters())
    assert linearity([model(x)], weights).curved == {"0.weight", "0.bias"}
    assert linearity([model.eval()(x)], weights).curved == set()


def test_what_is_not_known_is_curved():
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, g):
            return g

    w = nn.Parameter(torch.ones(2))
    assert linearity([Own.apply(w * 2)], {"w": w}).curved == {"w"}
    view = torch.zeros(4)
    view[:2] = w  # hides what is done to the view
    view[:2].sigmoid_()
    assert linearity([view], {"w": w}).curved == {"w"}


def test_penalties_bypass_the_outputs():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    z = model(torch.ones(1, 2))
    weights = dict(model.named_parameters())
    assert bypassing(z.square().sum(), [z], weights) == set()
    assert bypassing(z.sum() + model[1].weight.square().sum(), [z], weights) == {"1.weight"}

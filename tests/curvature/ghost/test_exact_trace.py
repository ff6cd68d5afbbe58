"""The exact trace against whole matrices: every layer, every loss, by parameter and by example."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from curvature_cases import CASES, case, data, dense_hessian, everything
from flatmin.curvature.ghost import ggn_trace
from flatmin.curvature.operators import GGN, FunctionalHessian

TIGHT = {"rtol": 1e-9, "atol": 1e-12}


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Twice(nn.Module):
    """Modules that are called twice."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(torch.relu(self.layers(x)))


class Language(nn.Module):
    """Embeddings tied to the head, positions, a norm, and a class token: everything transformers add."""

    def __init__(self, norm=nn.LayerNorm, *, tied=True):
        super().__init__()
        self.words, self.places = nn.Embedding(5, 4), nn.Embedding(6, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.scale = nn.Parameter(torch.randn(4))
        self.norm, self.head = norm(4), nn.Linear(4, 5, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, x):
        x = self.words(x) + self.places(torch.arange(x.shape[1])[None])
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        return self.head(self.norm(x) * self.scale)


class Attending(nn.Module):
    """Positions come first inside the attention, examples second."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2), nn.Linear(4, 3)

    def forward(self, x):
        x = self.head(self.attention(*[x.transpose(0, 1)] * 3, need_weights=False)[0])
        return x.mean(0)


class Lora(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(4, 3), nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)

    def forward(self, x):
        return self.base(x) + 0.5 * self.up(self.down(x))


def conv(*layers, channels, places):
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(channels * places, 3))


IMAGES = {
    "plain": lambda: conv(nn.Conv2d(4, 6, 3), channels=6, places=9),
    "grouped": lambda: conv(nn.Conv2d(4, 6, 3, groups=2, stride=2, padding=1), channels=6, places=9),
    "depthwise": lambda: conv(nn.Conv2d(4, 4, 2, groups=4, dilation=2), channels=4, places=9),
    "remainder": lambda: conv(nn.Conv2d(4, 2, 2, stride=2), channels=2, places=4),
    "pointwise": lambda: conv(nn.Conv2d(4, 6, 1, bias=False), channels=6, places=25),
    "uneven kernel": lambda: conv(nn.Conv2d(4, 3, (1, 3), padding=(0, 2), dilation=(1, 2)), channels=3, places=25),
    "same": lambda: conv(nn.Conv2d(4, 3, 3, padding="same"), channels=3, places=25),
    "circular": lambda: conv(nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), channels=3, places=25),
    "reflect": lambda: conv(nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), channels=3, places=25),
    "transposed": lambda: conv(
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.AvgPool2d(5), channels=6, places=4
    ),
    "transposed, output padding": lambda: conv(
        nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1), nn.AvgPool2d(5), channels=2, places=4
    ),
    "batch norm": lambda: conv(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.MaxPool2d(2), channels=3, places=1),
    "group norm": lambda: conv(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.AvgPool2d(3), channels=6, places=1),
    "instance norm": lambda: conv(nn.Conv2d(4, 3, 3), nn.InstanceNorm2d(3, affine=True), channels=3, places=9),
    "layer norm": lambda: conv(nn.Conv2d(4, 3, 3), nn.LayerNorm([3, 3]), channels=3, places=9),
    "prelu": lambda: conv(nn.Conv2d(4, 3, 3), nn.PReLU(3), nn.LeakyReLU(), channels=3, places=9),
    "residual": lambda: conv(
        Residual(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1)), channels=4, places=25
    ),
    "called twice": lambda: conv(Twice(nn.Conv2d(4, 4, 3, padding=1)), channels=4, places=25),
    "called twice, norm": lambda: conv(
        Twice(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)), channels=4, places=25
    ),
    "one dimension": lambda: nn.Sequential(
        nn.Flatten(2), nn.Conv1d(4, 3, 4, stride=3, dilation=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(21, 3)
    ),
    "three dimensions": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 2, (2, 3, 3), stride=(1, 2, 1), padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(90, 3),
    ),
    "sequence first": lambda: nn.Sequential(nn.Flatten(1, 2), Attending()),
    "windows": lambda: nn.Sequential(
        nn.Flatten(1, 2), nn.Unflatten(1, (5, 4)), nn.Flatten(0, 1), nn.Linear(5, 3), nn.Conv1d(4, 2, 1),
        nn.GroupNorm(1, 2), nn.Unflatten(0, (-1, 5)), nn.Flatten(), nn.ReLU(), nn.Linear(30, 3),
    ),
    "functional": lambda: nn.Sequential(nn.AvgPool2d(5), nn.Flatten(), Lora()),
}  # fmt: skip


def images(name):
    g = torch.Generator().manual_seed(4)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = IMAGES[name]().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=g)
            module.running_var.uniform_(0.5, 2.0, generator=g)
    sides = (5, 4) if name == "sequence first" else (5, 5)
    batches = [(torch.randn(n, 4, *sides, generator=g).double(), torch.arange(n) % 3) for n in (5, 3)]
    return model, functional.cross_entropy, batches


def tokens(model, loss_fn=None, sizes=(3, 2)):
    g = torch.Generator().manual_seed(4)
    batches = [
        {"x": torch.randint(0, 5, (n, 4), generator=g), "labels": torch.randint(0, 5, (n, 5), generator=g)}
        for n in sizes
    ]
    batches[0]["labels"][0, 1:4] = -100
    loss_fn = loss_fn or (lambda z, batch: functional.cross_entropy(z.transpose(1, 2), batch["labels"]))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return model().double(), loss_fn, batches


def check(model, loss_fn, batches, *, uncovered=(), **options):
    """Every block, every example and every claim of linearity against whole matrices."""
    G, R = GGN(model, loss_fn, batches), FunctionalHessian(model, loss_fn, batches)
    g, r = (A @ torch.eye(A.shape[0], dtype=A.dtype) for A in (G, R))
    t = ggn_trace(G, **options)
    assert t.uncovered == tuple(uncovered), t.reason
    assert set(t.blocks) == set(t.covered) == set(G.layout.shapes) - set(uncovered)
    for name, block in t.blocks.items():
        part = G.layout.slices[name]
        assert block.value == pytest.approx(float(g[part, part].trace()), rel=1e-9, abs=1e-12), name
        if name not in t.curved:
            assert r[part, part].abs().max() < 1e-10, name
    assert t.value == pytest.approx(sum(b.value for b in t.blocks.values()), rel=1e-12)
    assert t.value == pytest.approx(float(t.examples.mean()), rel=1e-12)
    assert t.exact
    assert t.stderr == 0
    return t, r


@pytest.mark.parametrize("name", IMAGES)
def test_every_layer(name):
    check(*images(name))


@pytest.mark.parametrize("name", [n for n in CASES if n != "scalar parameter"])
def test_every_case(name):
    check(*case(name))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, nn.Identity])
@pytest.mark.parametrize("tied", [True, False])
def test_language_models(norm, tied):
    t, _ = check(*tokens(lambda: Language((lambda n: norm()) if norm is nn.Identity else norm, tied=tied)))
    assert ("words.weight" in t.curved) == (tied or norm is not nn.Identity)


def test_examples_are_those_of_single_examples():
    model, loss_fn, batches = images("residual")
    t = ggn_trace(GGN(model, loss_fn, batches))
    singles = [
        ggn_trace(GGN(model, loss_fn, [(x[i : i + 1], y[i : i + 1])])).value for x, y in batches for i in range(len(x))
    ]
    torch.testing.assert_close(t.examples, torch.tensor(singles, dtype=torch.float64), **TIGHT)


def test_the_trace_of_the_hessian_of_a_piecewise_linear_network():
    model, loss_fn, batches = images("batch norm")
    t = ggn_trace(GGN(model, loss_fn, batches))
    assert t.curved == ()
    assert t.value == pytest.approx(float(dense_hessian(model, loss_fn, batches).trace()), rel=1e-9)


def test_curved_and_flat_blocks_add_up_to_the_hessian():
    model, loss_fn, batches = images("group norm")
    t, r = check(model, loss_fn, batches)
    H = dense_hessian(model, loss_fn, batches)
    slices = GGN(model, loss_fn, batches).layout.slices
    rest = sum(float(r[slices[n], slices[n]].trace()) for n in t.curved)
    assert t.curved == ("0.weight", "0.bias")
    assert t.value + rest == pytest.approx(float(H.trace()), rel=1e-9)


LOSSES = {
    "smoothing": lambda z, y: functional.cross_entropy(z, y, label_smoothing=0.2),
    "weights": lambda z, y: functional.cross_entropy(z, y, weight=torch.tensor([0.2, 1.0, 3.0]).double()),
    "ignored": lambda z, y: functional.cross_entropy(z, y, ignore_index=1),
    "temperature": lambda z, y: functional.cross_entropy(z / 3, y),
    "sum": lambda z, y: functional.cross_entropy(z, y, reduction="sum"),
    "binary": lambda z, y: functional.binary_cross_entropy_with_logits(z, functional.one_hot(y, 3).double()),
    "squared": lambda z, y: functional.mse_loss(z, functional.one_hot(y, 3).double()),
    "hinge": lambda z, y: (1 + z - z.gather(1, y[:, None])).relu().square().mean(),
    "not convex": lambda z, y: (z.tanh() * functional.one_hot(y, 3)).sum() / len(z),
    "focal": lambda z, y: ((1 - z.softmax(1)) ** 2 * -z.log_softmax(1)).gather(1, y[:, None]).mean(),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(name):
    model, _, batches = images("plain")
    check(model, LOSSES[name], batches)


def test_classes_in_the_second_dimension_and_single_outputs():
    model = nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2)).double()
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check(model, functional.cross_entropy, [(x, torch.arange(12).view(3, 2, 2) % 2)])
    single = nn.Sequential(nn.Flatten(), nn.Linear(100, 1), nn.Flatten(0)).double()
    check(single, functional.mse_loss, [(x, torch.ones(3).double())])


def test_several_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(3, 2)

        def forward(self, x):
            return {"a": self.one(x), "unused": x.sum(), "b": self.two(x)}

    def loss(z, batch):
        return functional.cross_entropy(z["a"], batch["y"]) + z["b"].square().mean()

    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check(Two().double(), loss, [{"x": x, "y": torch.arange(4)}])
    t = ggn_trace(GGN(Two().double(), lambda z, _: (z["a"].sum(1) * z["b"].sum(1)).mean(), [{"x": x}]))
    assert t.covered == ()
    assert "couples several output tensors" in t.reason


class Weighed(nn.Module):
    """A weight of unit rows, of which no layer knows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        return functional.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True))


def test_nothing_is_covered_where_no_parameter_has_a_form():
    model, loss_fn, batches = Weighed().double(), functional.cross_entropy, case("tanh").batches
    trace = ggn_trace(GGN(model, loss_fn, batches))
    assert (trace.covered, trace.value) == ((), 0.0)
    assert "no form of its gradients" in trace.reason


def test_losses_in_less_precision_than_the_model():
    """As in transformers, where logits of any type become float32 before the loss."""
    model, _, batches = case("relu")
    G = GGN(model, lambda z, y: functional.cross_entropy(z.float(), y), batches)
    trace = ggn_trace(G)
    assert trace.uncovered == ()
    assert trace.value == pytest.approx(float((G @ torch.eye(38, dtype=torch.float64)).trace()), rel=1e-6)


class Branching(nn.Module):
    """Takes another path for single examples."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        return self.head((x if len(x) == 1 else self.second(x)).relu())


@pytest.mark.parametrize("sizes", [(3, 1, 3), (1, 3), (6, 1)])
def test_batches_that_take_different_paths(sizes):
    check(Branching().double(), functional.cross_entropy, data(sizes))


class PositionsFirst(nn.Module):
    """One number that multiplies examples which are the second dimension."""

    def __init__(self):
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.tensor(0.7)), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.scale * x.tanh().transpose(0, 1) + self.scale).amax(0)


def test_single_numbers_where_positions_come_first():
    g = torch.Generator().manual_seed(1)
    batches = [(torch.randn(n, 4, 3, generator=g, dtype=torch.float64), torch.arange(n) % 2) for n in (3, 2)]
    check(PositionsFirst().double(), functional.cross_entropy, batches)


def test_float32_and_bf16():
    model, loss_fn, batches = images("batch norm")
    exact = ggn_trace(GGN(model, loss_fn, batches)).value
    for dtype, rel in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        cast = [(x.to(dtype), y) for x, y in batches]
        t = ggn_trace(GGN(model.to(dtype), loss_fn, cast))
        assert t.uncovered == ()
        assert t.value == pytest.approx(exact, rel=rel)


def test_autocast():
    model, loss_fn, batches = images("batch norm")
    exact = ggn_trace(GGN(model, loss_fn, batches)).value
    batches = [(x.float(), y) for x, y in batches]
    model.float()

    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.inner(x)

    t = ggn_trace(GGN(Cast(), loss_fn, batches))
    assert t.uncovered == ()
    assert t.value == pytest.approx(exact, rel=0.05)


def test_checkpointed_layers_are_covered_or_said_not_to_be():
    from torch.utils.checkpoint import checkpoint

    model, loss_fn, batches = images("residual")

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    t, _ = check(Checkpointed(), loss_fn, batches)
    assert t.curved == ()


def test_invisible():
    model, loss_fn, batches = images("batch norm")
    model.train()
    before = everything(model)
    ggn_trace(GGN(model, loss_fn, batches))
    assert everything(model) == before
    ggn_trace(GGN(model, loss_fn, batches, mode="current"))
    assert everything(model) == before


def test_cost_is_counted_for_all():
    H = GGN(*images("plain"))
    t = ggn_trace(H)
    assert t.gradients == pytest.approx(H.gradients)
    # a forward pass, two passes for the two columns of three classes, and the trial on four of eight examples
    assert 1 / 3 + 2 / 3 < t.gradients < 1 / 3 + 2 * 2 / 3 + 8 * 4 / 8
    assert t.num_matvecs == 2

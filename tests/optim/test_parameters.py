"""Parameters of every kind: each is perturbed, trained and restored as it should be."""

import pytest
import torch
from torch import nn

from methods_table import every_method, linear_methods
from problems import same, seeded, snapshot

SGD = torch.optim.SGD


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        self.a.requires_grad_(False)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 2), nn.Linear(7, 7)

    def forward(self, x):
        return self.used(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.scale = nn.Linear(4, 2), nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.scale * self.w(x)


class Empty(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.nothing = nn.Linear(4, 2), nn.Parameter(torch.zeros(0, 3))

    def forward(self, x):
        return self.w(x) + self.nothing.sum()


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.w = nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.w(torch.tanh(self.table(torch.tensor([1, 3, 3, 5]))))


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        self.w = nn.Linear(3, 2)

    def forward(self, x):
        images = torch.ones(4, 2, 5, 5, dtype=self.w.weight.dtype).to(memory_format=torch.channels_last)
        return self.w(torch.tanh(self.c(images)).mean((2, 3)))


class Complex(nn.Module):
    """Every method sees real and imaginary parts as coordinates of their own."""

    def __init__(self):
        super().__init__()
        self.c, self.w = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64)), nn.Linear(3, 2)

    def forward(self, x):
        return self.w((x.to(self.c.dtype) @ self.c).abs())


class BFloat16(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, dtype=torch.bfloat16), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x.bfloat16())).float())


MODELS = [Frozen, Unused, Tied, Scalar, Empty, Sparse, Conv, Complex, BFloat16]


def step(opt, model, shell):
    x = torch.linspace(-1, 1, 16).reshape(4, 4)

    def closure():
        opt.zero_grad()
        value = model(x).square().mean()
        value.backward()
        return value

    if shell == "closure":
        return opt.step(closure)
    for probe in opt.probes():
        with probe:
            model(x).square().mean().backward()
    opt.step()
    opt.zero_grad()
    return None


@pytest.mark.loop("every kind")
@every_method
@pytest.mark.parametrize("kind", MODELS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("shell", ["closure", "probes"])
def test_every_kind_of_parameter(method, kind, shell):
    model = seeded(kind)
    before = snapshot(model)
    everything = list(model.parameters())
    opt = method.build(SGD(everything, lr=0.0))
    step(opt, model, shell)
    assert same(snapshot(model), before)  # restored, bit for bit

    opt = method.build(SGD(everything, lr=0.5))
    for _ in range(3):
        step(opt, model, shell)
    for name, p in model.named_parameters():
        trained = p.requires_grad and "unused" not in name and p.numel() > 0
        assert torch.equal(p, before[name]) != trained, name
        assert torch.isfinite(p).all()


@pytest.mark.loop("sparse")
@every_method
def test_sparse_gradients_stay_sparse_and_right(method):
    dense, sparse = seeded(Sparse), seeded(Sparse)
    dense.table.sparse = False
    for model in (dense, sparse):
        opt = method.build(SGD(model.parameters(), lr=0.5))
        for probe in opt.probes():
            with probe:
                model(None).square().mean().backward()
    assert sparse.table.weight.grad.is_sparse
    torch.testing.assert_close(sparse.table.weight.grad.to_dense(), dense.table.weight.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.loop("complex")
@every_method
def test_complex_parameters_train_as_their_real_and_imaginary_parts_do(method):
    """Noise, norms, filters and inner products are those of the pairs of real numbers."""

    class Pairs(nn.Module):
        def __init__(self, is_complex):
            super().__init__()
            pairs = seeded(lambda: torch.randn(4, 3, 2, dtype=torch.float64))
            self.c = nn.Parameter(torch.view_as_complex(pairs) if is_complex else pairs)

        def forward(self, x):
            c = self.c if self.c.is_complex() else torch.view_as_complex(self.c)
            return 0.1 * ((x.to(c.dtype) @ c).abs().square().sum(1) - x[:, 0])

    ends, x = [], torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4)
    for is_complex in (True, False):
        model = Pairs(is_complex)
        opt = method.build(SGD(model.parameters(), lr=0.01))
        for _ in range(3):
            for probe in opt.probes():
                with probe:
                    model(x).square().mean().backward()
            opt.step()
            opt.zero_grad()
        end = model.c.detach()
        ends.append((torch.view_as_real(end) if is_complex else end, opt.trace_estimate))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-11, atol=1e-13)
    if method.traces:
        torch.testing.assert_close(ends[0][1].value, ends[1][1].value, rtol=1e-10, atol=0)


@pytest.mark.loop("dropped layers")
@every_method
def test_a_layer_left_out_of_one_evaluation_is_restored(method):
    """Stochastic depth, mixtures of experts: a parameter may have a gradient at one point and none at another."""
    model = seeded(lambda: nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]))
    before, x = snapshot(model), torch.ones(2, 4)
    opt = method.build(SGD(model.parameters(), lr=0.0))
    for number, probe in enumerate(opt.probes()):
        with probe:
            h = model[0](x)
            (model[1](h) if number % 2 == 0 else h).square().mean().backward()
    opt.step()
    assert same(snapshot(model), before)


@linear_methods
def test_freezing_does_not_shift_the_noise_of_the_others(method):
    seen = []
    for freeze in (False, True):
        model = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
        model[0].requires_grad_(not freeze)
        opt = method.build(SGD(model.parameters(), lr=0.1))
        for probe in opt.probes():
            with probe:
                seen.append(model[1].weight.detach().clone())
                model(torch.ones(1, 3)).sum().backward()
            break
    assert torch.equal(seen[0], seen[1])


@pytest.mark.loop("moved")
@every_method
def test_parameters_moved_after_construction(method):
    model = seeded(Scalar)
    opt = method.build(SGD(model.parameters(), lr=0.1))
    model.double()
    x = torch.ones(4, 4, dtype=torch.float64)
    for probe in opt.probes():
        with probe:
            model(x).square().mean().backward()
    opt.step()
    assert all(p.dtype == torch.float64 and torch.isfinite(p).all() for p in model.parameters())


def test_two_layers_of_one_shape_never_share_noise():
    import flatmin as fm

    model = nn.ModuleList(nn.Linear(50, 50) for _ in range(4))
    start = [p.detach().clone() for p in model.parameters()]
    opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma=1.0)
    for probe in opt.probes():
        with probe:
            u = [(p.detach() - s).flatten() for p, s in zip(model.parameters(), start, strict=True) if p.dim() == 2]
            sum(p.sum() for p in model.parameters()).backward()
        break
    correlations = torch.corrcoef(torch.stack(u)) - torch.eye(4)
    assert correlations.abs().max() < 4 / 2500**0.5  # four standard errors of a correlation of independent samples


def test_sam_finds_its_way_with_tiny_gradients_in_half_precision():
    """1 / |g| overflows in 16 bits; the displacement does not."""
    import flatmin as fm

    w = nn.Parameter(torch.ones(4, dtype=torch.float16))
    opt, points = fm.SAM(SGD([w], lr=0.0), rho=0.5), []
    for probe in opt.probes():
        with probe:
            points.append(w.detach().clone())
            (w.float().sum() * 4e-6).backward()
    torch.testing.assert_close(points[1], torch.full((4,), 1.25, dtype=torch.float16), rtol=1e-2, atol=0)


@every_method
def test_a_probe_lets_go_of_a_displacement_the_size_of_the_model(method):
    from flatmin.vectors import Vector

    model = seeded(Scalar)
    opt = method.build(SGD(model.parameters(), lr=0.0))
    for probe in opt.probes():
        with probe:
            assert not isinstance(probe.displacement, Vector)
            model(torch.ones(2, 4)).sum().backward()

"""The finder of sigma and rho against closed forms, and that it leaves nothing changed."""

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from curvature_cases import case, data, everything, mean_loss, mlp
from flatmin.errors import ArgumentError, ArgumentTypeError, DataError, NonFiniteError
from flatmin.measures import find_rho, find_sigma, perturbation_gap

ONE = [(torch.zeros(1), torch.zeros(1))]


def value(output, _):
    return output


class Quadratic(nn.Module):
    """f(w) = c + w'Hw / 2 + b'w."""

    def __init__(self, H, w, *, b=0.0, c=0.0):
        super().__init__()
        self.H, self.b, self.c = H, b, c
        self.w = nn.Parameter(w)

    def forward(self, _):
        return self.c + self.w @ self.H @ self.w / 2 + self.b * self.w.sum()


def full_quadratic(c=10.0):
    g = torch.Generator().manual_seed(0)
    A = torch.randn(6, 6, generator=g, dtype=torch.float64)
    return Quadratic(A @ A.T, torch.randn(6, generator=g, dtype=torch.float64), b=3.0, c=c)


def on_a_slope(slope, curvature=0.0):
    """f(w) = 1 + slope (w - 1) + curvature (w - 1)² / 2, looked at from w = 1 = f(w)."""

    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, _):
            return 1 + slope * (self.w - 1) + curvature * (self.w - 1) ** 2 / 2

    return Slope()


@given(
    tolerance=st.floats(1e-6, 1e3),
    eigenvalues=st.lists(st.floats(0.1, 100.0), min_size=1, max_size=5),
)
def test_sigma_on_a_diagonal_quadratic_has_its_closed_form(tolerance, eigenvalues):
    """With signs u'Hu = tr H, so that sigma² tr H / 2 = tolerance; beyond the grid too, which goes on."""
    H = torch.diag(torch.tensor(eigenvalues, dtype=torch.float64))
    found = find_sigma(
        Quadratic(H, torch.zeros(len(H), dtype=torch.float64)), value, ONE, tolerance=tolerance, noise="rademacher"
    )
    assert found.value == pytest.approx(math.sqrt(2 * tolerance / sum(eigenvalues)), rel=1e-9)
    assert found.is_enclosed
    torch.testing.assert_close(found.rises, found.grid**2 * sum(eigenvalues) / 2)


def test_sigma_on_a_full_quadratic_is_that_of_the_draws():
    """Each draw rises by sigma² u'Hu / 2: one number q for all sigmas, and sqrt(tolerance / q) is the answer."""
    model = full_quadratic()
    found = find_sigma(model, value, ONE, tolerance=0.01, num_samples=20)
    q = found.rises / found.grid**2
    torch.testing.assert_close(q, q[3].expand_as(q), rtol=1e-7, atol=0)
    assert found.value == pytest.approx(math.sqrt(0.01 / float(q[3])), rel=1e-7)
    error = float(found.stderrs[3] / found.grid[3] ** 2)
    assert abs(float(q[3]) - float(model.H.trace()) / 2) < 4 * error
    assert found.stderr == pytest.approx(found.value * error / float(q[3]) / 2, rel=1e-7)  # sigma goes as q^-1/2


def test_the_standard_error_is_that_of_many_seeds():
    def search(seed):
        return find_sigma(full_quadratic(), value, ONE, tolerance=0.01, grid=[1e-3, 1.0], num_samples=10, seed=seed)

    searches = [search(seed) for seed in range(200)]
    spread = torch.tensor([s.value for s in searches]).std()
    typical = torch.tensor([s.stderr for s in searches]).square().mean().sqrt()
    assert float(spread) == pytest.approx(float(typical), rel=0.15)  # the spread is known to 5 % (200 seeds)


@pytest.mark.parametrize("name", ["gelu", "ragged", "mappings", "conv, batch-norm, dropout"])
def test_the_rises_are_perturbation_gaps(name):
    given = case(name)
    found = find_sigma(*given, num_samples=50, grid=[0.01, 0.1])
    for sigma, rise, stderr in zip(found.grid.tolist(), found.rises.tolist(), found.stderrs.tolist()):
        gap = perturbation_gap(*given, sigma=sigma, num_samples=400)
        assert abs(rise - gap.value) < 4 * math.hypot(stderr, gap.stderr)
        assert found.clean_loss == gap.clean_loss


def test_the_answer_rises_by_the_tolerance():
    """At the proposed sigma, the same draws raise the loss by what was allowed, up to the interpolation."""
    given = case("tanh")
    found = find_sigma(*given, fraction=0.2, grid=torch.logspace(-2, 0, 21))
    again = find_sigma(*given, grid=[found.value, 2 * found.value], tolerance=1e9)
    assert float(again.rises[0]) == pytest.approx(0.2 * found.clean_loss, rel=0.01)


@given(slope=st.floats(0.01, 100.0), fraction=st.floats(1e-3, 10.0))
def test_rho_on_a_plane_has_its_closed_form(slope, fraction):
    """The rise is rho ‖g‖."""
    found = find_rho(on_a_slope(slope), value, ONE, fraction=fraction)
    assert found.value == pytest.approx(fraction / slope, rel=1e-9)
    assert found.stderr == 0.0
    assert not found.stderrs.any()


@given(slope=st.floats(0.1, 10.0), curvature=st.floats(0.0, 50.0), tolerance=st.floats(0.01, 1.0))
def test_rho_on_a_parabola_has_its_closed_form(slope, curvature, tolerance):
    """The rise is rho ‖g‖ + rho² ĝ'Hĝ / 2; the straight line through a fine grid comes near to its root."""
    root = 2 * tolerance / (slope + math.sqrt(slope**2 + 2 * curvature * tolerance))
    grid = torch.logspace(-4, 1, 201, dtype=torch.float64)
    found = find_rho(on_a_slope(slope, curvature), value, ONE, tolerance=tolerance, grid=grid)
    torch.testing.assert_close(found.rises, slope * grid + curvature * grid**2 / 2)
    assert found.value == pytest.approx(root, rel=1e-3)


@pytest.mark.parametrize(
    "name", ["gelu", "ragged", "tied", "frozen", "unused", "mappings", "conv, batch-norm, dropout"]
)
def test_rho_goes_along_the_gradient_of_all_data(name):
    """The literal text: f(w + rho g / ‖g‖) - f(w), by torch.func."""
    model, loss_fn, batches = case(name)
    found = find_rho(model, loss_fn, batches, tolerance=0.01)
    model.eval()
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    g = torch.func.grad(lambda w: mean_loss(model, loss_fn, batches, w))(weights)
    length = torch.stack([part.norm() for part in g.values()]).norm()
    clean = mean_loss(model, loss_fn, batches, weights)
    for rho, rise in zip(found.grid, found.rises):
        moved = {n: w + rho * g[n] / length for n, w in weights.items()}
        torch.testing.assert_close(
            rise, (mean_loss(model, loss_fn, batches, moved) - clean).detach(), rtol=1e-9, atol=1e-12
        )


def test_a_sparse_gradient_has_a_direction():
    dense, sparse = nn.Embedding(5, 3).double(), nn.Embedding(5, 3, sparse=True).double()
    sparse.load_state_dict(dense.state_dict())
    batches = [(torch.tensor([0, 2]), torch.zeros(2, 3, dtype=torch.float64)), (torch.tensor([2]), torch.ones(1, 3))]
    found = [find_rho(model, functional.mse_loss, batches) for model in (dense, sparse)]
    torch.testing.assert_close(found[0].rises, found[1].rises)


def test_noise_relative_to_filters():
    """Doubling a filter and halving what reads it changes no output, and no curve in units of the filters."""
    model, loss_fn, batches = case("relu")
    model.a.bias.data.zero_()
    other = case("relu").model
    other.load_state_dict(model.state_dict())
    other.a.weight.data.mul_(4)
    other.b.weight.data.div_(4)
    grid = [0.001, 0.01]
    for p in (model.a.bias, other.a.bias):
        p.requires_grad_(requires_grad=False)
    searches = [find_sigma(m, loss_fn, batches, grid=grid, noise_scale="filter", tolerance=0.1) for m in (model, other)]
    torch.testing.assert_close(searches[0].rises[:2], searches[1].rises[:2])
    absolute = [find_sigma(m, loss_fn, batches, grid=grid, tolerance=0.1) for m in (model, other)]
    assert not torch.allclose(absolute[0].rises[:2], absolute[1].rises[:2], rtol=0.1)


@pytest.mark.parametrize(("find", "expected"), [(find_sigma, 1 + 2 * 4 * 7), (find_rho, 1 + 1 + 7)])
def test_the_evaluations_are_counted(find, expected):
    calls = []

    def counting(output, target):
        calls.append(1)
        return functional.cross_entropy(output, target)

    found = find(mlp().double(), counting, data()[:1])
    assert found.num_evaluations == len(calls) == expected + found.num_added * (8 if find is find_sigma else 1)


def test_seeds():
    given = case("gelu")

    def rises(seed, n=4):
        return find_sigma(*given, seed=seed, num_samples=n).rises

    assert torch.equal(rises(1), rises(1))
    assert not torch.equal(rises(1), rises(2))


def test_a_grid_that_does_not_enclose_the_tolerance_goes_on():
    """f rises by 2 rho; both ways by the ratio at that end."""
    up = find_rho(on_a_slope(2.0), value, ONE, grid=[0.1, 0.2, 0.3], tolerance=1.0)
    assert up.grid.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.45, 0.675])
    down = find_rho(on_a_slope(2.0), value, ONE, grid=[2.0, 4.0], tolerance=1.5)
    assert down.grid.tolist() == [0.5, 1.0, 2.0, 4.0]
    assert (up.value, down.value) == (pytest.approx(0.5), pytest.approx(0.75))
    assert (up.num_added, down.num_added) == (2, 2)
    assert "3 radii and 2 more" in repr(up)


def test_a_loss_that_does_not_rise():
    found = find_sigma(on_a_slope(2.0), value, ONE)
    assert not found.is_enclosed
    assert found.value == float(found.grid[-1]) == pytest.approx(1e3)
    assert math.isnan(found.stderr)
    assert repr(found).startswith("RadiusSearch(sigma > 1e+03: the loss of 1 rises by less than 0.1; 7 radii and 12 ")


class Cliff(nn.Module):
    """Finite at the weights and, beyond ``edge``, nowhere else."""

    def __init__(self, edge, beyond=math.inf):
        super().__init__()
        self.edge, self.beyond = edge, beyond
        self.w = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, _):
        return 1 + torch.where(self.w.norm() > self.edge, self.beyond, self.w.square().sum())


def test_a_loss_that_rises_at_once():
    found = find_sigma(Cliff(0.0), value, ONE)
    assert math.isnan(found.value)
    assert not found.is_enclosed
    assert (found.num_added, len(found.grid)) == (12, 19)
    assert repr(found).startswith("RadiusSearch(sigma < 1e-07: the loss of 1 rises by more than 0.1; 7 radii and 12 ")


@pytest.mark.parametrize("beyond", [math.inf, math.nan])
def test_overflow_is_part_of_the_curve(beyond):
    """No logarithm of infinity: the answer is the last radius that is known to stay below."""
    found = find_sigma(Cliff(0.03, beyond), value, ONE, tolerance=0.5)
    assert found.rises.isinf().tolist() == [False] * 4 + [True] * 3
    assert not found.rises.isnan().any()
    assert found.value == float(found.grid[3])
    assert math.isnan(found.stderr)
    assert found.is_enclosed


def test_the_first_passage_counts():
    """A loss that comes down again far away has not become flat."""

    class Hill(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, _):
            return 1 + self.w + 10 * torch.exp(-((self.w - 0.1) ** 2) / 1e-4)

    found = find_rho(Hill(), value, ONE, tolerance=0.5)
    assert 0.0316 < found.value < 0.1
    assert float(found.rises[5]) < 0.5


@pytest.mark.parametrize("mode", ["eval", "current"])
@pytest.mark.parametrize("find", [find_sigma, find_rho])
def test_nothing_is_left_changed(find, mode):
    model, loss_fn, batches = case("conv, batch-norm, dropout")
    model[1].eval()
    model[0].weight.grad = torch.full_like(model[0].weight, 3.0)
    x, y = (torch.cat(parts) for parts in zip(*batches))
    g = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=g)
    before = everything(model, [g])
    find(model, loss_fn, loader, mode=mode)
    assert everything(model, [g]) == before


@pytest.mark.parametrize("call", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("find", [find_sigma, find_rho])
def test_nothing_is_left_changed_by_an_exception(find, call):
    model, calls = mlp().double(), []

    def fails(output, targets):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return functional.cross_entropy(output, targets)

    before = everything(model)
    with pytest.raises(KeyboardInterrupt):
        find(model, fails, data())
    assert everything(model) == before


@pytest.mark.parametrize("find", [find_sigma, find_rho])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(find, dtype):
    exact = find(*case("gelu"))
    model, loss_fn, batches = case("gelu", dtype)
    before = everything(model)
    low = find(model, loss_fn, batches)
    assert everything(model) == before
    assert low.value == pytest.approx(exact.value, rel=1e-3 if dtype == torch.float32 else 0.5)


def test_prints():
    found = find_sigma(full_quadratic(), value, ONE, tolerance=0.01)
    assert repr(found).startswith("RadiusSearch(sigma = 0.0")
    assert " ± 0.0" in repr(found)
    assert repr(found).endswith("7 radii, 57 evaluations)")
    assert "\n" not in repr(found)


@pytest.mark.parametrize("find", [find_sigma, find_rho])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"grid": [0.1]}, ArgumentError, r"grid is \[0.1\].*at least two.*logspace"),
        ({"grid": [0.2, 0.1]}, ArgumentError, "ascending"),
        ({"grid": [0.0, 0.1]}, ArgumentError, "above 0"),
        ({"grid": [0.1, math.inf]}, ArgumentError, "finite"),
        ({"grid": [[0.1, 0.2]]}, ArgumentError, r"grid is \[\["),
        ({"tolerance": 0.0}, ArgumentError, "tolerance is 0, but it must be above 0.*units of the loss"),
        ({"fraction": -1}, ArgumentError, "fraction is -1"),
        ({"fraction": "a"}, ArgumentTypeError, "fraction is 'a'"),
        ({"mode": "train"}, ArgumentError, "mode is 'train'"),
        ({"batches": []}, DataError, "no batch"),
        ({"model": mlp().requires_grad_(requires_grad=False)}, ArgumentError, "nothing to measure"),
        (
            {"loss_fn": lambda o, t: 0 * o.sum()},
            ArgumentError,
            "loss at the weights is 0, so a rise by 0.1.*held-out.*tolerance",
        ),
        ({"loss_fn": lambda o, t: 0 * o.sum() - 1}, ArgumentError, "is -1, .*may be negative"),
        ({"loss_fn": lambda o, t: o.sum() * math.nan}, NonFiniteError, "loss of batch 0 is nan"),
    ],
)
def test_messages(find, changes, error, message):
    given = {"model": mlp().double(), "loss_fn": functional.cross_entropy, "batches": data()} | changes
    with pytest.raises(error, match=message):
        find(given.pop("model"), given.pop("loss_fn"), given.pop("batches"), **given)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_samples": 1}, ArgumentError, "num_samples is 1.*one has no standard error"),
        ({"noise": "gausian"}, ArgumentError, "Did you mean 'gaussian'"),
        ({"noise_scale": "filters"}, ArgumentError, "Did you mean 'filter'"),
        ({"seed": -1}, ArgumentError, "seed is -1"),
    ],
)
def test_messages_of_sigma(changes, error, message):
    with pytest.raises(error, match=message):
        find_sigma(mlp().double(), functional.cross_entropy, data(), **changes)


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda o, t: 1 + 0 * o.sum(), ArgumentError, "gradient at the weights is 0.*find_sigma"),
        (lambda o, t: 1 + o.square().sum().detach(), ArgumentTypeError, "depends on no trainable parameter.*detach"),
        (lambda o, t: 1 + (0 * o.sum()).sqrt(), NonFiniteError, "gradient holds NaN or infinity although the loss"),
    ],
)
def test_messages_of_rho(loss_fn, error, message):
    with pytest.raises(error, match=message):
        find_rho(mlp().double(), loss_fn, data())


def test_weights_that_are_not_finite():
    model = mlp().double()
    model.a.bias.data[1] = torch.inf
    for find in (find_sigma, find_rho):
        with pytest.raises(NonFiniteError, match=r"'a.bias' holds NaN or infinity"):
            find(model, functional.cross_entropy, data())


def test_a_small_loss_of_small_units_needs_a_tolerance():
    model = mlp()

    def tiny(output, target):
        return 1e-8 * functional.cross_entropy(output, target)

    batches = [(x.float(), y) for x, y in data()]
    with pytest.raises(ArgumentError, match=r"rounding of torch.float32"):
        find_sigma(model, tiny, batches)
    full = find_sigma(model, functional.cross_entropy, batches, tolerance=0.1)
    assert find_sigma(model, tiny, batches, tolerance=1e-9).value == pytest.approx(full.value, rel=1e-3)


def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    import matplotlib as mpl

    mpl.use("agg")
    page = (Path(__file__).resolve().parents[2] / "docs" / "choosing-sigma.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    with torch.random.fork_rng(devices=[]):
        for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
            exec(compile(code, "choosing-sigma.md", "exec"), namespace)
    assert capsys.readouterr().out.startswith("RadiusSearch(sigma = ")
    assert (tmp_path / "sigma.png").stat().st_size > 0
    assert namespace["automatic"].value == namespace["sigma"]
    assert namespace["opt"]._groups.schedules() == [namespace["automatic"]]
    mpl.pyplot.close("all")

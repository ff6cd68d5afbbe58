"""The recipes of the escape from sharp minima: the library's flows in rows, and what they find."""

import functools
import math

import numpy as np
import pytest
import torch

import flatmin as fm
from flatmin.errors import NonFiniteError
from flatmin.measures import is_flat
from flatmin.problems import CoshValley, Hyperbolas
from flatmin.vectors import Vector
from flatmin_lab.recipes.escape2023.cells import CONVEX, DIMENSION, EXAMPLE_1, SIZES, WORST, Cell
from flatmin_lab.recipes.escape2023.drift import expected_steps
from flatmin_lab.recipes.escape2023.example1 import START, _move, example1, walk
from flatmin_lab.recipes.escape2023.fits import Fit
from flatmin_lab.recipes.escape2023.rates import rates
from flatmin_lab.recipes.escape2023.reach import reach
from flatmin_lab.recipes.escape2023.rows import Rows, RowStream, direction
from flatmin_lab.recipes.escape2023.scalings import Scaling, bound, scaling
from flatmin_lab.recipes.outcome import publish

NOWHERE = lambda *_: None  # noqa: E731


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def project_out(u, v):
    return u - (u @ v) / (v @ v) * v


def test_rows_are_vectors_of_their_own():
    a, b = randn(5, 3), randn(5, 3, seed=1)
    a[2] = b[3] = 0
    for i in range(5):
        x, y = Vector({0: a[i]}), Vector({0: b[i]})
        torch.testing.assert_close(Rows(a).unit().tensor[i], x.unit().tensors[0])
        torch.testing.assert_close(Rows(a).orthogonal_to(Rows(b)).tensor[i], x.orthogonal_to(y).tensors[0])
        torch.testing.assert_close((2.0 * Rows(a) + Rows(b)).tensor[i], (2.0 * x + y).tensors[0])
    assert Rows(a).norm() == pytest.approx(float(a.norm()))


def test_a_stream_of_rows_gives_each_a_fair_sign():
    signs = RowStream(0, (3,), rows=10_000).sign()
    assert signs.shape == (10_000, 1)
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4 / math.sqrt(10_000)


@pytest.mark.parametrize("x", [START, (2.0, 1.5)], ids=["near", "far"])
def test_one_row_of_rs_is_what_the_functional_driver_gives(x):
    valley, set_ = Hyperbolas(), Scaling(eta=0.01, descent=0.03, rho=0.1, threshold=0.2)
    x = torch.tensor(x, dtype=torch.float64)
    flow = functools.partial(fm.flows.randomly_smoothed, rho=0.1, threshold=0.2, descent_scale=3.0)
    expected = fm.gradient(flow, valley.value, valley.named(x), seed=7, step=5)["w"]
    found = direction(valley, "RS", x[None], set_, seed=7, step=5)
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-14)


def test_rows_of_sa_are_the_pseudocode_with_one_of_its_examples_and_signs():
    valley, rho = CoshValley(4), 0.3
    x = valley.minima[-1].double() + 0.01 * randn(20, 4)
    found = direction(valley, "SA", x, Scaling(0.01, 0.1, rho, threshold=100.0), seed=1, step=2)
    met = set()
    for row, ours in zip(x, found):
        g, candidates = valley.gradient(row), {}
        for i in range(3):
            of = functools.partial(valley.example_gradient, example=torch.tensor(i))
            for sign in (1, -1):
                up = row + rho * sign * of(row) / of(row).norm()
                candidates[i, sign] = g + project_out(of(up), g)
        (key,) = [key for key, u in candidates.items() if torch.allclose(u, ours, rtol=1e-10)]
        met.add(key)
    assert len(met) > 2  # rows draw apart


def test_rows_part_at_the_threshold():
    valley, set_ = CoshValley(3), Scaling(eta=0.1, descent=0.2, rho=0.3, threshold=0.5)
    near, far = torch.tensor([1.0, 0.01, 0.0]).double(), torch.tensor([1.0, 2.0, 0.0]).double()
    for method in ("RS", "SA"):
        found = direction(valley, method, torch.stack([near, far]), set_, seed=0, step=0)
        torch.testing.assert_close(found[1], 2 * valley.gradient(far))
        assert not torch.allclose(found[0], 2 * valley.gradient(near))


@pytest.mark.parametrize("y", [0.0, 1e-170, 1e-200])
def test_an_example_without_a_gradient_is_left_by_a_random_step(y):
    """Remark 2: at y = 0 no ∇f_i has a direction, nor where squares underflow; the one after a tiny step does."""
    valley = CoshValley(3)
    x = torch.tensor([[1.0, y, y]], dtype=torch.float64)
    found = direction(valley, "SA", x, Scaling(0.1, 0.1, rho=0.1, threshold=1.0), seed=0, step=0)
    # ∇f_i at x ± ρ e_i: along the valley κ/2 n h tanh ρ², and ± n h ρ across.
    h = math.cosh(1.0)
    assert float(found[0, 0]) == pytest.approx(h * math.tanh(1.0) * 0.1**2, rel=1e-4)
    assert sorted(found[0, 1:].abs().tolist()) == pytest.approx([0.0, 2 * h * 0.1], abs=1e-4)


def test_label_noise_is_the_gradient_at_other_targets():
    valley, x = Hyperbolas(), torch.tensor([[4.0, 0.25]] * 50, dtype=torch.float64)
    found = _move(valley, "label noise", seed=0)(x, 0)
    # At a minimum 2 (p − y ∓ 1) ∇p = ∓2 (x₂, x₁).
    torch.testing.assert_close(found.abs(), torch.tensor([[0.5, 8.0]]).double().expand(50, 2))
    assert {float(sign) for sign in found[:, 0].sign()} == {-1.0, 1.0}


def test_parameters_scale_as_the_theorems_say():
    rs = [scaling("RS", eps, 0.5, 4.0, dim=50) for eps in (0.04, 0.01)]
    assert [a / b for a, b in zip(*(vars(s).values() for s in rs))] == pytest.approx([4, 1, 2, 4])
    eps = 0.001  # ν = 10 in 50 dimensions, 2 in two
    many, few = (scaling("SA", eps, 0.5, 4.0, dim=dim) for dim in (50, 2))
    assert (many.eta, many.rho) == pytest.approx((10 * 0.5 * eps / 4, 10 * 0.5 * eps**0.5))
    assert many.eta / few.eta == pytest.approx(5)
    assert many.threshold == pytest.approx(4 * 5**1.5 * eps)
    assert bound("SA", 1e-3, 100) == pytest.approx(1e4)  # d⁻¹ε⁻²
    assert bound("SA", 1e-6, 2) == pytest.approx(1e18 / 16)  # d⁻⁴ε⁻³


@pytest.mark.parametrize("method", ["RS", "SA"])
@pytest.mark.parametrize(("study", "dim"), [(EXAMPLE_1, 2), (CONVEX, 5)])
def test_walks_end_in_flat_minima_by_the_definition(study, dim, method):
    eps = 0.2
    cell = Cell(study, method, eps, dim)
    valley = cell.valley()
    start, minimum = cell.start(valley, 2, seed=0), cell.minimum(valley)
    assert not valley.gradient(minimum).any()
    torch.testing.assert_close((start - minimum).norm(dim=1), torch.full((2,), eps).double())
    largest = float(torch.linalg.eigvalsh(valley.hessian(minimum))[-1])
    expected = vars(scaling(method, eps, 0.5, largest, dim))
    assert vars(cell.scaling(valley)) == pytest.approx(expected)
    options = {"eps": eps, "eps_prime": math.sqrt(eps), "rtol": 1e-6}
    assert not is_flat(valley.value, start[0], **options)
    found = reach(valley, method, start, cell.scaling(valley), eps=eps, seed=0, max_steps=5000)
    assert found.are_flat(eps).all()
    for point in found.points:
        assert is_flat(valley.value, point, **options)


def test_walks_that_do_not_arrive_have_no_number_of_steps():
    cell = Cell(CONVEX, "RS", 0.1, 3)
    valley = cell.valley()
    start = cell.start(valley, 2, seed=0)
    found = reach(valley, "RS", start, cell.scaling(valley), eps=0.1, seed=0, max_steps=10)
    assert np.isnan(found.steps).all()


def test_a_walk_that_diverges_says_so():
    """In a thousand dimensions at ε = 0.01 a single example's gradient throws SA out of the valley."""
    cell = Cell(CONVEX, "SA", 0.01, 1000)
    valley = cell.valley()
    start = cell.start(valley, 1, seed=0)
    with pytest.raises(
        NonFiniteError, match=r"SA with ε = 0.01 in 1000 dimensions left the finite numbers before step"
    ):
        reach(valley, "SA", start, cell.scaling(valley), eps=0.01, seed=0, max_steps=5000)


def test_the_worst_valleys_are_hardly_steeper_than_they_may_be_from_a_trace_of_e_on():
    for eps in (0.1, 0.001):
        cell = Cell(WORST, "RS", eps, 1000)
        valley = cell.valley()
        start = cell.minimum(valley)
        assert 1 / cell.scaling(valley).descent == pytest.approx(math.e)
        # h′ = κ h tanh x, between 2√ε and κ e over most of the way from h = e to 1.
        way = torch.zeros(200, 1000, dtype=torch.float64)
        way[:, 0] = torch.linspace(1.0, float(start[0]), 200)
        slopes = valley.trace_gradient(way).norm(dim=1) / math.sqrt(eps)
        assert bool(((slopes > 2) & (slopes < 4 * math.e)).all())


def test_the_drift_alone_takes_what_its_closed_forms_say():
    """Along sinh 2s of Example 1 it falls as exp(−4ct); along tanh(x/2) of the convex valley as exp(−ct)."""
    eps, set_ = 0.01, Scaling(eta=0.02, descent=0.1, rho=0.1, threshold=1.0)
    c = set_.eta * set_.rho**2 / 2
    x = Hyperbolas().minima[-1].double()
    # At the end 4 sinh 2s / sqrt(2 cosh 2s) = √ε: u = sinh 2s solves 16 u² = 2 ε sqrt(1 + u²).
    u = math.sqrt((eps / 8) ** 2 / 2 + math.sqrt((eps / 8) ** 4 / 4 + (eps / 8) ** 2))
    steps = math.log(math.sinh(2 * math.log(2)) / u) / (4 * c)
    assert expected_steps(Hyperbolas(), "RS", x, set_, eps) == pytest.approx(steps, rel=1e-3)
    assert expected_steps(Hyperbolas(), "SA", x, set_, eps) == pytest.approx(steps / 2, rel=1e-3)
    d, x = 50, torch.zeros(50, dtype=torch.float64)
    x[0] = 2.0
    share = (d - 1) / d
    end = math.asinh(math.sqrt(eps) / share)
    steps = math.log(math.tanh(1.0) / math.tanh(end / 2)) / (c * share)
    assert expected_steps(CoshValley(d), "RS", x, set_, eps) == pytest.approx(steps, rel=1e-3)
    assert expected_steps(CoshValley(d), "SA", x, set_, eps) == pytest.approx(steps / d, rel=1e-3)


def test_power_laws_are_fitted_with_their_interval():
    x = [0.1, 0.01, 0.001]
    exact = Fit.of(x, [np.full(4, 5 * e**-3) for e in x])
    assert (exact.slope, exact.half_width) == pytest.approx((-3, 0), abs=1e-5)
    assert math.isnan(Fit.of(x[:2], [np.ones(2)] * 2).half_width)
    bent = Fit.of(x, [np.array([v]) for v in (1.0, 10.0, 1000.0)])
    # By hand: u = ln 10, points (−1, 0), (−2, 1), (−3, 3) in u: slope −1.5, residuals² 1/6, t(1) = 12.706.
    assert bent.slope == pytest.approx(-1.5)
    assert bent.half_width == pytest.approx(12.706 * math.sqrt(1 / 6 / 2), rel=1e-4)
    assert str(bent) == "−1.50 ± 3.67"


def test_example_1_at_toy_size(tmp_path):
    seen = []
    found = example1("toy", 0, lambda *a: seen.append(a))
    path, ends = found.tables
    last = {row[0]: row for row in path.rows}  # the last step of each method
    assert set(last) == {"RS", "SA", "label noise", "GD"}
    for name in ("RS", "SA", "GD"):
        trace, deviation, predicted = last[name][4:]
        # Standard errors of four seeds, and 1 % for the higher orders of the drift.
        assert abs(trace - predicted) <= 4 * deviation / 2 + 0.01 * predicted
    assert last["SA"][4] < last["RS"][4] < last["GD"][4] == pytest.approx(16.0625)
    label_noise = next(columns for name, columns in found.series.items() if name == "label-noise")
    assert (np.diff(label_noise["trace"]) <= 0).mean() > 0.9  # the trace falls along the iterates
    assert all(row[1] == "0 of 4" for row in ends.rows)  # a thousand steps are too few
    assert "(4, 0.25)" in found.text
    assert seen[-1] == ("GD", 1000, 1000)
    files = publish(found, tmp_path, title="Example 1")
    assert (tmp_path / files["example1 (figure)"]).stat().st_size > 10_000
    again = walk(Hyperbolas(), "RS", 1000, 4, 0, NOWHERE)  # alone, the same path bit for bit
    assert again.traces.mean(1).tolist() == found.series["rs"]["trace"].tolist()
    shares = label_noise["trace"] / label_noise["predicted"]
    assert f"its trace is {shares.min():.3f} to {shares.max():.3f} of the predicted" in found.text


def test_rates_at_toy_size(tmp_path, monkeypatch):
    # For the sake of time: a coarser integral, which is tested above, and numbers of steps within 5 %.
    monkeypatch.setattr("flatmin_lab.recipes.escape2023.drift._POINTS", 2001)
    monkeypatch.setattr("flatmin_lab.recipes.escape2023.reach._RESOLUTION", 0.05)
    found = rates("toy", 0, NOWHERE)
    slopes, steps = found.tables
    assert all(row[-1] == "4 of 4" for row in steps.rows)
    assert len(steps.rows) == len(SIZES["toy"].cells())
    number = {row[:2]: float(row[7].split(" ")[0].replace("−", "-")) for row in slopes.rows}
    assert number[WORST, "RS"] < number[CONVEX, "RS"] < number[CONVEX, "SA"] < -1
    assert number[WORST, "SA"] < number[CONVEX, "SA"]
    assert abs(number[DIMENSION, "RS"]) < 0.2
    for row in steps.rows:  # perturbed steps beside those of the drift, whose higher orders ε = 0.4 does not hide
        assert 0.4 < row[6] / row[5] < 2.5
        assert row[6] <= row[7]
    cells = len(SIZES["toy"].cells())
    assert f"{4 * cells} of {4 * cells} walks" in found.text
    assert f"{cells} of {cells} by the definition" in found.text
    files = publish(found, tmp_path, title="Rates")
    assert (tmp_path / files["rates (figure)"]).stat().st_size > 10_000

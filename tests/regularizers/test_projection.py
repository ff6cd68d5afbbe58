"""The projection: theorems about the map itself (hypothesis), and the loop around it by hand."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import flatmin as fm
from flatmin import ArgumentError, ArgumentTypeError
from flatmin.regularizers import DistanceProjection
from problems import closure_of, data, loss, mlp, same, seeded, snapshot
from reference.draws import noise

NORMS = ("frobenius", "mars")
every_norm = pytest.mark.parametrize("norm", NORMS)


def frobenius(w):
    return np.sqrt((w**2).sum())


def mars(w):
    return max(np.abs(row).sum() for row in w)


SIZE = {"frobenius": frobenius, "mars": mars}


def literal(w, w0, radius, norm):
    """Scale what sticks out: the matrix, or each of its rows."""
    if norm == "frobenius":
        return w0 + (w - w0) / max(1.0, frobenius(w - w0) / radius)
    return np.stack([c + (r - c) / max(1.0, np.abs(r - c).sum() / radius) for r, c in zip(w, w0)])


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def projected(w, w0, radius, norm, dtype=torch.float64):
    """What the class makes of the matrix ``w``, as an array."""
    layer = nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(w))
    start = {"weight": torch.from_numpy(w0)}
    DistanceProjection(sgd(layer), layer, norm=norm, radius=radius, start=start).project()
    return layer.weight.detach().double().numpy()


def matrices(count):
    """``count`` matrices of one shape, and a radius."""
    number = st.floats(-4, 4, allow_subnormal=False).map(lambda x: round(x, 3))

    def of(shape):
        matrix = st.lists(number, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
        return st.lists(matrix.map(lambda v: np.array(v).reshape(shape)), min_size=count, max_size=count)

    return st.tuples(st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(of), st.floats(0.01, 10))


@given(matrices(2), st.sampled_from(NORMS))
def test_it_equals_its_literal_twin(case, norm):
    (w, w0), radius = case
    np.testing.assert_allclose(projected(w, w0, radius, norm), literal(w, w0, radius, norm), rtol=1e-12, atol=1e-14)


@given(matrices(2), st.sampled_from(NORMS))
def test_inside_the_bits_stay_and_outside_it_lands_on_the_boundary(case, norm):
    (w, w0), radius = case
    after, size = projected(w, w0, radius, norm), SIZE[norm]
    if size(w - w0) <= radius * (1 - 1e-12):
        assert np.array_equal(after, w)
    else:
        np.testing.assert_allclose(size(after - w0), min(radius, size(w - w0)), rtol=1e-12)
    if norm == "mars":
        kept = np.abs(w - w0).sum(1) <= radius * (1 - 1e-12)
        assert np.array_equal(after[kept], w[kept])


@given(matrices(2), st.sampled_from(NORMS))
def test_twice_is_once(case, norm):
    (w, w0), radius = case
    once = projected(w, w0, radius, norm)
    np.testing.assert_allclose(projected(once, w0, radius, norm), once, rtol=1e-13, atol=1e-14)


@given(matrices(2), st.sampled_from(NORMS))
def test_every_entry_comes_nearer_to_the_start_and_none_passes_it(case, norm):
    (w, w0), radius = case
    before, after = w - w0, projected(w, w0, radius, norm) - w0
    assert (np.abs(after) <= np.abs(before) * (1 + 1e-12) + 1e-14).all()
    assert (after * before >= -1e-14).all()


@given(matrices(3))
def test_frobenius_brings_no_two_points_further_apart(case):
    (a, b, w0), radius = case
    after = projected(a, w0, radius, "frobenius") - projected(b, w0, radius, "frobenius")
    assert frobenius(after) <= frobenius(a - b) * (1 + 1e-12) + 1e-13


@given(matrices(3))
def test_mars_brings_no_two_points_more_than_twice_as_far_apart(case):
    """The factor of a radial retraction in a norm that has no inner product."""
    (a, b, w0), radius = case
    after = projected(a, w0, radius, "mars") - projected(b, w0, radius, "mars")
    assert mars(after) <= 2 * mars(a - b) * (1 + 1e-12) + 1e-13


@given(matrices(3))
def test_frobenius_is_the_euclidean_projection(case):
    """Characterised by <w - p, v - p> <= 0 for all v of the ball."""
    (w, v, w0), radius = case
    v = literal(v, w0, radius, "frobenius")
    p = projected(w, w0, radius, "frobenius")
    assert ((w - p) * (v - p)).sum() <= 1e-11


@given(matrices(2))
def test_frobenius_equals_a_minimiser_that_is_searched_for(case):
    """min |v - w|² with |v - w0| <= radius: v = (w + m w0)/(1 + m), the multiplier m found by bisection."""
    (w, w0), radius = case

    def at(multiplier):
        return (w + multiplier * w0) / (1 + multiplier)

    low, high = 0.0, 1e6
    if frobenius(w - w0) <= radius:
        high = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if frobenius(at(middle) - w0) > radius else (low, middle)
    np.testing.assert_allclose(projected(w, w0, radius, "frobenius"), at(high), rtol=1e-9, atol=1e-9)


@given(matrices(3))
def test_mars_is_a_nearest_point_in_its_norm(case):
    (w, v, w0), radius = case
    distance = mars(w - projected(w, w0, radius, "mars"))
    np.testing.assert_allclose(distance, max(0.0, mars(w - w0) - radius), rtol=1e-9, atol=1e-12)
    assert distance <= mars(w - literal(v, w0, radius, "mars")) + 1e-12


def test_mars_is_not_the_euclidean_projection_and_moves_less_than_one_factor_would():
    w, w0 = np.array([[3.0, 1.0], [0.5, 0.25]]), np.zeros((2, 2))
    after = projected(w, w0, 2.0, "mars")
    np.testing.assert_allclose(after, [[1.5, 0.5], [0.5, 0.25]])
    euclidean = np.array([[2.0, 0.0], [0.5, 0.25]])  # every entry of the row less by one
    assert frobenius(w - euclidean) < frobenius(w - after) < frobenius(w - w * 2 / 4)


@every_norm
@pytest.mark.parametrize(("dtype", "eps"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-10), (torch.float32, 2**-23)])
def test_types_of_fewer_bits_land_within_their_rounding(norm, dtype, eps):
    w, w0 = (t.to(dtype).double().numpy() for t in seeded(lambda: torch.randn(2, 5, 7, dtype=torch.float64)).unbind())
    after = projected(w, w0, 1.0, norm, dtype)
    exact = literal(w, w0, 1.0, norm)
    assert (np.abs(after - exact) <= eps * np.abs(exact) + 1e-7).all()


@every_norm
def test_radius_zero_pins_the_weights(norm):
    model = mlp()
    start = snapshot(model)
    opt = sgd(model)
    DistanceProjection(opt, model, norm=norm, radius=0.0)
    for _ in range(3):
        opt.step(closure_of(opt, model, data()))
    assert all(torch.equal(model[i].weight, start[f"{i}.weight"]) for i in (0, 2))
    assert not torch.equal(model[0].bias, start["0.bias"])  # one dimension: left alone


@every_norm
def test_what_is_not_finite_is_left_for_all_to_see(norm):
    for bad in (np.nan, np.inf):
        w = np.array([[bad, 5.0], [1.0, 1.0]])
        after = projected(w, np.zeros((2, 2)), 0.5, norm)
        assert np.array_equal(after[0], w[0], equal_nan=True)
        assert np.array_equal(after[1], w[1] if norm == "frobenius" else w[1] / 4)


def rows_of(module):
    """Index of everything that leads to each output of a convolution, by loops over its definition."""
    weight, groups, outputs = module.weight, module.groups, module.out_channels
    for output in range(outputs):
        if isinstance(module, nn.ConvTranspose2d):
            inputs, per_group = weight.shape[0] // groups, outputs // groups
            group = output // per_group
            yield (slice(group * inputs, (group + 1) * inputs), output % per_group)
        else:
            yield (output,)


@pytest.mark.parametrize("build", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_rows_of_convolutions_are_all_that_leads_to_one_output(build, groups):
    module = seeded(lambda: build(4, 8, (2, 3), groups=groups)).double()
    start = snapshot(module)
    expected = start["weight"].clone()
    for row in rows_of(module):
        expected[row] /= max(1.0, float(expected[row].abs().sum()) / 0.3)
    projection = DistanceProjection(sgd(module), module, norm="mars", radius=0.3, start={"bias": start["bias"]})
    sums = [float(start["weight"][row].abs().sum()) for row in rows_of(module)]
    torch.testing.assert_close(projection.distances()["weight"].item(), max(sums), rtol=1e-12, atol=0)
    projection.project()
    torch.testing.assert_close(module.weight.detach(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("build", [nn.Conv2d, nn.ConvTranspose2d])
def test_the_norm_bounds_what_inputs_between_minus_one_and_one_can_do(build):
    """The maximum absolute row sum is the operator norm from max to max, attained where the kernels do not overlap."""
    module = seeded(lambda: build(4, 6, 2, groups=2, bias=False, stride=2)).double()
    size = DistanceProjection(
        sgd(module), module, norm="mars", radius=1.0, start={"weight": 0 * module.weight}
    ).distances()
    best = 0.0
    for row in rows_of(module):
        signs = torch.zeros_like(module.weight)
        signs[row] = module.weight[row].sign()
        if build is nn.Conv2d:
            x = signs[row].new_zeros(1, 4, 2, 2)
            per_group = 2 * (row[0] // 3)
            x[0, per_group : per_group + 2] = signs[row]
            best = max(best, module(x).abs().max().item())
        else:  # strides as wide as the kernel: one input position feeds each output position
            x = torch.zeros(1, 4, 4, 1, dtype=torch.float64)
            for place, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
                x[0, row[0], place, 0] = module.weight[row][..., i, j].sign()
            best = max(best, module(x).abs().max().item())
    if build is nn.Conv2d:
        assert best == pytest.approx(float(size["weight"]), rel=1e-12)
    else:
        assert best <= float(size["weight"])


def train_by_hand(step_direction, steps, radii, norm):
    """W <- project(W - 0.1 direction) with numpy's projection; the biases are free."""
    model = mlp()
    names = [name for name, _ in model.named_parameters()]
    W = [p.detach().clone() for p in model.parameters()]
    start = [w.numpy().copy() for w in W]
    for step in range(steps):
        W = [w - 0.1 * g for w, g in zip(W, step_direction(W, step))]
        for i, name in enumerate(names):
            if name in radii:
                W[i] = torch.from_numpy(literal(W[i].numpy(), start[i], radii[name], norm))
    return W


def gradient_at(weights):
    twin = mlp()
    twin.load_state_dict(dict(zip((name for name, _ in twin.named_parameters()), weights)))
    return torch.autograd.grad(loss(twin, data()), list(twin.parameters()))


def two_point(W, step):
    U = [0.05 * u for u in noise(fm.Gaussian(), W, seed=0, step=step, draw=0)]
    plus, minus = (gradient_at([w + s * u for w, u in zip(W, U)]) for s in (1, -1))
    return [(a + b) / 2 for a, b in zip(plus, minus)]


def run(opt, model, shell, steps=6):
    for _ in range(steps):
        if shell == "closure":
            opt.step(closure_of(opt, model, data()))
            continue
        for probe in opt.probes():
            with probe:
                loss(model, data()).backward()
        opt.step()
        opt.zero_grad()


@every_norm
@pytest.mark.parametrize("shell", ["closure", "probes", "plain", "base"])
def test_training_equals_the_loop_by_hand(norm, shell):
    model, radii = mlp(), {"0.weight": 0.02, "2.weight": 0.03}
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    opt = base if shell == "plain" else fm.NSO(base, sigma=0.05)
    projection = DistanceProjection(base if shell == "base" else opt, model, norm=norm, radius=radii)
    run(opt, model, "closure" if shell in ("plain", "base") else shell)
    direction = (lambda W, step: gradient_at(W)) if shell == "plain" else two_point
    expected = train_by_hand(direction, 6, radii, norm)
    torch.testing.assert_close([p.detach() for p in model.parameters()], expected, rtol=1e-12, atol=1e-13)
    for name, distance in projection.distances().items():
        assert float(distance) == pytest.approx(radii[name], rel=1e-12)  # the bound was at work


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=1.0, max_iter=3),
    "NSO": lambda p: fm.NSO(torch.optim.AdamW(p, lr=0.1), sigma=0.05, num_perturbations=2),
    "WPSGD": lambda p: fm.WPSGD(torch.optim.AdamW(p, lr=0.1), sigma=0.05),
    "SAM": lambda p: fm.SAM(torch.optim.AdamW(p, lr=0.1), rho=0.05),
}


@every_norm
@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optimizer_stays_in_the_ball(norm, build):
    model = mlp()
    start = {name: w.numpy() for name, w in snapshot(model).items()}
    opt = build(model.parameters())
    DistanceProjection(opt, model, norm=norm, radius=0.05)
    for _ in range(4):
        opt.step(closure_of(opt, model, data()))
        for name in ("0.weight", "2.weight"):
            moved = SIZE[norm](model.get_parameter(name).detach().numpy() - start[name])
            assert moved == pytest.approx(0.05, rel=1e-12)


def test_the_first_pattern_that_matches_counts():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))).double()
    zero = {name: torch.zeros_like(w) for name, w in snapshot(model).items()}
    before = snapshot(model)
    DistanceProjection(sgd(model), model, radius={"0.*": 0.5, "[01].weight": 0.25}, start=zero).project()
    assert [round(float(model[i].weight.detach().norm()), 12) for i in (0, 1)] == [0.5, 0.25]
    assert torch.equal(model[2].weight, before["2.weight"])


def test_which_parameters_take_part():
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(3, 2))
    model.scale = nn.Parameter(torch.ones(()))
    names = {n: set(DistanceProjection(sgd(model), model, radius=1.0, min_dim=n).distances()) for n in (0, 1, 2, 3)}
    assert names[3] == {"0.weight"}
    assert names[2] == {"0.weight", "3.weight"}
    assert names[1] == {name for name, _ in model.named_parameters()} - {"scale"}
    assert names[0] == names[1] | {"scale"}
    assert set(DistanceProjection(sgd(model[0]), model, radius=1.0).distances()) == {"0.weight"}


@every_norm
def test_below_two_dimensions_every_entry_is_a_row(norm):
    model = nn.Linear(1, 3).double()
    with torch.no_grad():
        model.bias.copy_(torch.tensor([3.0, -4.0, 0.5]))
    start = {"bias": torch.zeros(3), "weight": model.weight.detach()}
    DistanceProjection(sgd(model), model, norm=norm, radius=1.0, min_dim=1, start=start).project()
    expected = [1.0, -1.0, 0.5] if norm == "mars" else [3 / 25.25**0.5, -4 / 25.25**0.5, 0.5 / 25.25**0.5]
    torch.testing.assert_close(model.bias.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_frozen_parameters_are_left_alone_while_they_are_frozen():
    model = mlp()
    projection = DistanceProjection(sgd(model), model, radius=0.1, start={"0.weight": torch.ones(12, 6)})
    before = snapshot(model)
    model[0].requires_grad_(False)
    projection.project()
    assert torch.equal(model[0].weight, before["0.weight"])
    assert set(projection.distances()) == {"2.weight"}
    model[0].requires_grad_(True)
    projection.project()
    assert float((model[0].weight.detach() - 1).norm()) == pytest.approx(0.1)
    model.requires_grad_(False)
    projection.project()
    assert projection.distances() == {}


@every_norm
def test_a_new_head_stays_in_a_ball_around_zero(norm):
    model = mlp()
    start = {name: w for name, w in snapshot(model).items() if name.startswith("0.")}
    projection = DistanceProjection(sgd(model), model, norm=norm, radius=0.1, start=start)
    size = SIZE[norm](model[2].weight.detach().numpy())
    assert float(projection.distances()["2.weight"]) == pytest.approx(size, rel=1e-12)
    projection.project()
    assert SIZE[norm](model[2].weight.detach().numpy()) == pytest.approx(0.1, rel=1e-12)


def test_complex_weights_in_the_frobenius_norm():
    layer = nn.Linear(3, 2, bias=False, dtype=torch.complex128)
    before = layer.weight.detach().clone()
    DistanceProjection(sgd(layer), layer, radius=0.1, start={"weight": torch.zeros(2, 3)}).project()
    torch.testing.assert_close(layer.weight.detach(), before * 0.1 / before.norm(), rtol=1e-12, atol=0)
    with pytest.raises(ArgumentTypeError, match=r"'weight' is complex.*take 'frobenius'"):
        DistanceProjection(sgd(layer), layer, norm="mars", radius=0.1)


def test_tied_weights_are_projected_once_by_either_name():
    model = nn.Module()
    model.a, model.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    model.b.weight = model.a.weight
    for radius in ({"a.*": 0.1}, {"b.*": 0.1}):
        projection = DistanceProjection(sgd(model), model, radius=radius, start={"b.weight": torch.zeros(3, 3)})
        assert set(projection.distances()) == {"a.weight"}


def test_memory_and_views_are_kept():
    model = mlp()
    places = [p.data_ptr() for p in model.parameters()]
    view = model[0].weight.detach().view(-1)
    DistanceProjection(sgd(model), model, radius=0.1, start={"0.weight": torch.zeros(12, 6)}).project()
    assert places == [p.data_ptr() for p in model.parameters()]
    assert float(view.norm()) == pytest.approx(0.1)


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def fresh(norm):
    model = mlp()
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), sigma=0.05)
    return model, opt, DistanceProjection(opt, model, norm=norm, radius=0.05)


@every_norm
def test_resumed_equals_uninterrupted(norm):
    whole = fresh(norm)
    run(whole[1], whole[0], "closure", 3)
    states = [through_a_file(part.state_dict()) for part in whole]
    model = mlp()
    model.load_state_dict(states[0])
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), sigma=0.05)
    projection = DistanceProjection(opt, model, norm=norm, radius=0.05)  # of the weights half-way
    opt.load_state_dict(states[1])
    projection.load_state_dict(states[2])
    for o, m in ((whole[1], whole[0]), (opt, model)):
        run(o, m, "closure", 3)
    assert same(snapshot(whole[0]), snapshot(model))


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
@pytest.mark.parametrize("removed", [False, True])
def test_copied_with_its_optimizer_it_goes_on_there(how, removed):
    whole = fresh("mars")
    run(whole[1], whole[0], "closure", 2)
    if removed:
        whole[2].remove()
    copies = pickle.loads(pickle.dumps(whole)) if how == "pickle" else copy.deepcopy(whole)
    for model, opt, _ in (whole, copies):
        run(opt, model, "closure", 3)
    assert same(snapshot(whole[0]), snapshot(copies[0]))
    assert copies[2]._optimizer is copies[1]
    assert (float(copies[2].distances()["0.weight"]) > 0.051) == removed


def test_removed_it_projects_no_more():
    model, opt, projection = fresh("frobenius")
    run(opt, model, "closure", 2)
    projection.remove()
    run(opt, model, "closure", 2)
    assert float(projection.distances()["0.weight"]) > 0.051


@every_norm
def test_nothing_waits_for_a_value(norm):
    """On the meta device no tensor has one: whatever asks for it raises."""
    model = mlp().to("meta")
    projection = DistanceProjection(sgd(model), model, norm=norm, radius=0.1)
    projection.project()
    assert all(distance.is_meta for distance in projection.distances().values())


def test_nobody_needs_to_hold_it():
    model = mlp()
    opt = sgd(model)
    DistanceProjection(opt, model, radius=0.01)
    start = snapshot(model)
    run(opt, model, "closure", 5)
    assert float((model[0].weight.detach() - start["0.weight"]).norm()) == pytest.approx(0.01)


def test_an_optimizer_whose_parameters_were_exchanged_is_told():
    model = mlp()
    opt = sgd(model)
    DistanceProjection(opt, model, radius=0.01)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.param_groups[0]["params"] = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    with pytest.raises(ArgumentError, match=r"no longer holds the parameter that was '0\.weight'.*prepared since"):
        opt.step()


def test_parameters_that_join_later_are_left_alone_until_they_are_named():
    model = mlp()
    opt = sgd(model[0])
    DistanceProjection(opt, model, radius=0.01)
    opt.add_param_group({"params": model[2].parameters(), "lr": 0.5})
    run(opt, model, "closure", 1)
    second = DistanceProjection(opt, model, radius={"2.weight": 0.01})
    run(opt, model, "closure", 5)
    assert float(second.distances()["2.weight"]) == pytest.approx(0.01)


def wrapped(**changes):
    model = mlp()
    return DistanceProjection(sgd(model), model, **{"radius": 1.0, **changes})


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: wrapped(radius=-1.0), ArgumentError, r"radius is -1\.0, but it must be finite and at least 0"),
        (lambda: wrapped(radius="1"), ArgumentTypeError, "radius is '1', which is no number"),
        (lambda: wrapped(radius={"0.*": float("inf")}), ArgumentError, r"radius of '0\.\*' is inf, but it must be"),
        (
            lambda: wrapped(radius={"head.*": 1.0}),
            ArgumentError,
            r"radius holds 'head\.\*', which matches no parameter that could be meant. Those are '0\.weight', '2",
        ),
        (lambda: wrapped(radius={"*.bias": 1.0}), ArgumentError, r"radius holds '\*\.bias', which matches no"),
        (lambda: wrapped(radius={0: 1.0}), ArgumentTypeError, "radius holds 0, but names or patterns"),
        (lambda: wrapped(norm="mar"), ArgumentError, "norm is 'mar', but .*Did you mean 'mars'"),
        (lambda: wrapped(min_dim=-1), ArgumentError, "min_dim is -1, but it must be at least 0"),
        (lambda: wrapped(min_dim=5), ArgumentError, "no parameter of the model of at least min_dim = 5 dimensions"),
        (lambda: wrapped(start=3), ArgumentTypeError, "start is a int, but weights by name"),
        (
            lambda: DistanceProjection(mlp().parameters(), mlp(), radius=1.0),
            ArgumentTypeError,
            r"optimizer is a generator, but a torch\.optim\.Optimizer",
        ),
        (
            lambda: DistanceProjection(sgd(mlp()), mlp(), radius=1.0),
            ArgumentError,
            "The optimizer holds no parameter of the model.*wrapped or sharded after",
        ),
        (lambda: wrapped().load_state_dict({"state": {}}), ArgumentError, r"holds \['state'\].*one entry, 'start'"),
    ],
)
def test_bad_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()

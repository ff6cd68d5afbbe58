"""Noise in the targets: its law, its equivalence to label smoothing, and the diffusion it causes, in closed form."""

import copy
import math
import pickle
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

import flatmin as fm
from flatmin import ArgumentError, ArgumentTypeError
from flatmin.regularizers import LabelNoise, TargetNoise
from flatmin.streams import Stream
from problems import closure_of, data, mlp, same, snapshot
from reference import nso_algorithm1

CPU = torch.device("cpu")


def law(label, p, K):
    """P(noisy = c) for each class c."""
    return [1 - p if c == label else p / (K - 1) for c in range(K)]


def share_within(count, n, probability, errors=5):
    return abs(count / n - probability) <= errors * math.sqrt(probability * (1 - probability) / n)


def test_a_literal_twin_label_by_label():
    K, p, labels = 7, 0.4, torch.randint(0, 7, (50,), generator=torch.Generator().manual_seed(0))
    noisy = LabelNoise(p, K, seed=3)
    for call in range(3):
        generator = Stream(3, (zlib.crc32(b"LabelNoise"), call, 0)).generator(0, CPU)
        chances = torch.rand(50, generator=generator, dtype=torch.float64).tolist()
        steps = torch.randint(1, K, (50,), generator=generator).tolist()
        expected = []
        for label, chance, step in zip(labels.tolist(), chances, steps):
            around = [*range(label + 1, K), *range(label)]  # the other classes, from the next one on
            expected.append(around[step - 1] if chance < p else label)
        assert noisy(labels).tolist() == expected


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_every_other_class_is_drawn_alike(p):
    K, n = 5, 40_000
    for label in range(K):
        drawn = LabelNoise(p, K, seed=label)(torch.full((n,), label))
        counts = torch.bincount(drawn, minlength=K).tolist()
        assert all(share_within(count, n, q) for count, q in zip(counts, law(label, p, K)))


def test_draws_are_independent_over_examples_and_calls():
    n, p, noisy = 40_000, 0.3, LabelNoise(0.3, 2, seed=0)
    flips = [noisy(torch.zeros(n, dtype=torch.long)) for _ in range(2)]
    for first, second in (flips, (flips[0][1:], flips[0][:-1])):
        both = int((first & second).sum())
        assert share_within(both, len(first), p * p)


def test_nothing_and_everything():
    labels = torch.arange(1000) % 10
    assert torch.equal(LabelNoise(0.0, 10)(labels), labels)
    assert not (LabelNoise(1.0, 10)(labels) == labels).any()
    assert torch.equal(LabelNoise(1.0, 2)(labels % 2), 1 - labels % 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (6,), (2, 3, 4)])
def test_shape_and_type_are_those_of_the_labels(dtype, shape):
    labels = torch.full(shape, 3, dtype=dtype)
    before = labels.clone()
    drawn = LabelNoise(1.0, 10)(labels)
    assert (drawn.shape, drawn.dtype, drawn.device) == (labels.shape, dtype, labels.device)
    assert torch.equal(labels, before)
    assert bool((drawn != 3).all())
    assert bool(((drawn >= 0) & (drawn < 10)).all())


@pytest.mark.parametrize("ignored", [-100, 255, 0, 2, 4])
def test_ignored_labels_stay_and_are_never_drawn(ignored):
    K, n = 5, 20_000
    labels = torch.arange(n) % K
    labels[::7] = ignored
    drawn = LabelNoise(1.0, K, ignore_index=ignored, seed=1)(labels)
    kept = labels == ignored
    assert torch.equal(drawn[kept], labels[kept])
    assert not (drawn[~kept] == ignored).any()
    assert not (drawn[~kept] == labels[~kept]).any()
    choices = K - 1 - (0 <= ignored < K)
    for label in set(range(K)) - {ignored}:
        counts = torch.bincount(drawn[(labels == label) & ~kept], minlength=K)
        present = counts[counts > 0].tolist()
        assert len(present) == choices
        assert all(share_within(count, sum(present), 1 / choices) for count in present)


def test_global_random_states_are_left_alone():
    before = torch.get_rng_state()
    LabelNoise(0.5, 3)(torch.zeros(10, dtype=torch.long))
    TargetNoise(0.5)(torch.zeros(10))
    assert torch.equal(torch.get_rng_state(), before)


@given(
    st.integers(2, 6).flatmap(
        lambda K: st.tuples(
            st.lists(st.lists(st.floats(-5, 5), min_size=K, max_size=K), min_size=1, max_size=4),
            st.floats(0, (K - 1) / K),
        )
    ),
    st.data(),
)
def test_the_expected_loss_is_label_smoothing(case, more):
    rows, p = case
    logits = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    n, K = logits.shape
    labels = torch.tensor(more.draw(st.lists(st.integers(0, K - 1), min_size=n, max_size=n)))
    expected = torch.zeros((), dtype=torch.float64)
    for i, label in enumerate(labels.tolist()):
        for c, q in enumerate(law(label, p, K)):
            expected = expected + q * cross_entropy(logits[i : i + 1], torch.tensor([c])) / n
    smooth = cross_entropy(logits, labels, label_smoothing=LabelNoise(p, K).label_smoothing)
    torch.testing.assert_close(smooth, expected, rtol=1e-10, atol=1e-12)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (smooth, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_so_is_the_average_over_draws_beside_ignored_labels():
    (x, labels), model, noisy = data(), mlp(), LabelNoise(0.2, 3, seed=0)
    labels = labels.clone()
    labels[:5] = -100
    logits = model(x).detach()
    losses = torch.stack([cross_entropy(logits, noisy(labels)) for _ in range(2000)])
    smooth = cross_entropy(logits, labels, label_smoothing=noisy.label_smoothing)
    assert abs(losses.mean() - smooth) <= 5 * losses.std() / math.sqrt(len(losses))


def test_and_with_class_weights_for_sums_only():
    logits, weight = mlp()(data()[0]).detach(), torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    labels, p = data()[1], 0.3
    expected = sum(
        q * cross_entropy(logits[i : i + 1], torch.tensor([c]), weight=weight, reduction="sum")
        for i, label in enumerate(labels.tolist())
        for c, q in enumerate(law(label, p, 3))
    )
    smoothing = LabelNoise(p, 3).label_smoothing
    smooth = cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(smooth, expected, rtol=1e-12, atol=0)


def test_what_no_smoothing_equals():
    assert LabelNoise(0.75, 4).label_smoothing == 1.0
    with pytest.raises(ArgumentError, match=r"probability 0\.8 exceeds \(K - 1\)/K = 0\.75, that of pure noise"):
        _ = LabelNoise(0.8, 4).label_smoothing
    with pytest.raises(ArgumentError, match="class 0 is ignored and never drawn"):
        _ = LabelNoise(0.1, 4, ignore_index=0).label_smoothing


TRANSFORMS = {
    "LabelNoise": (lambda **options: LabelNoise(0.5, 10, **options), torch.arange(200) % 10),
    "TargetNoise": (lambda **options: TargetNoise(0.5, **options), torch.linspace(-1, 1, 200)),
}
every_transform = pytest.mark.parametrize(("build", "targets"), TRANSFORMS.values(), ids=TRANSFORMS)


@every_transform
def test_resumed_equals_uninterrupted(build, targets):
    whole = build(seed=5)
    for _ in range(3):
        whole(targets)
    resumed = build(seed=0)
    resumed.load_state_dict(whole.state_dict())
    copies = [resumed, pickle.loads(pickle.dumps(whole)), copy.deepcopy(whole)]
    for _ in range(3):
        expected = whole(targets)
        assert all(torch.equal(other(targets), expected) for other in copies)


@every_transform
def test_the_state_is_that_of_every_rank(build, targets):
    ranks = [build(rank=rank) for rank in range(2)]
    for transform in ranks:
        transform(targets)
    assert ranks[0].state_dict() == ranks[1].state_dict() == {"seed": 0, "calls": 1}


@every_transform
def test_ranks_draw_noise_of_their_own(build, targets, monkeypatch):
    assert torch.equal(build(rank=0)(targets), build()(targets))
    assert not torch.equal(build(rank=1)(targets), build(rank=0)(targets))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    assert torch.equal(build()(targets), build(rank=3)(targets))
    assert torch.equal(build(rank=0)(targets), build(rank=0)(targets))


@every_transform
def test_seeds_and_calls_differ(build, targets):
    first, other = build(seed=0), build(seed=1)
    drawn = [first(targets), first(targets), other(targets)]
    assert not any(torch.equal(drawn[i], drawn[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_equal_seeds_share_no_stream_with_each_other_or_with_an_optimizer():
    taken = {
        Stream(0, (step, draw)).generator(i, CPU).initial_seed()
        for step in range(20)
        for draw in range(3)
        for i in range(3)
    }
    own = [t._generator(CPU).initial_seed() for t in (LabelNoise(0.1, 3), TargetNoise(0.1)) for _ in range(20)]
    assert len(set(own)) == 40
    assert not taken & set(own)


@pytest.mark.parametrize("shell", ["closure", "probes"])
def test_all_points_of_a_step_see_the_same_labels(shell):
    """Against the pseudocode, whose gradients are taken at labels drawn once a step."""
    (x, y), model, steps = data(), mlp(), 4
    start = [p.detach().clone() for p in model.parameters()]
    drawn = [LabelNoise(0.4, 3, seed=2)]
    labels = [drawn[0](y) for _ in range(steps)]
    calls = iter(labels[i // 2] for i in range(2 * steps))  # two gradients a step

    def gradient(weights):
        twin = mlp()
        with torch.no_grad():
            for p, w in zip(twin.parameters(), weights):
                p.copy_(w)
        return torch.autograd.grad(cross_entropy(twin(x), next(calls)), list(twin.parameters()))

    law = fm.Gaussian()
    expected = nso_algorithm1.train(start, gradient, sigma=0.05, k=1, law=law, eta=0.1, mu=0.9, steps=steps, seed=0)
    opt, noisy = (
        fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), sigma=0.05),
        LabelNoise(0.4, 3, seed=2),
    )
    for _ in range(steps):
        batch = (x, noisy(y))
        if shell == "closure":
            opt.step(closure_of(opt, model, batch))
        else:
            for probe in opt.probes():
                with probe:
                    cross_entropy(model(batch[0]), batch[1]).backward()
            opt.step()
            opt.zero_grad()
    torch.testing.assert_close([p.detach() for p in model.parameters()], expected, rtol=1e-12, atol=1e-12)


def test_a_resumed_run_equals_an_uninterrupted_one():
    def run(steps, model, opt, noisy):
        for _ in range(steps):
            opt.step(closure_of(opt, model, (data()[0], noisy(data()[1]))))

    def fresh():
        model = mlp()
        return model, fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.05), LabelNoise(0.4, 3)

    whole, resumed = fresh(), fresh()
    run(3, *whole)
    for new, old in zip(resumed, whole):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    run(3, *whole)
    run(3, *resumed)
    assert same(snapshot(whole[0]), snapshot(resumed[0]))


def test_the_noise_of_a_regression_is_plus_or_minus_sigma():
    targets, noisy, n = torch.linspace(-1, 1, 40_000, dtype=torch.float64), TargetNoise(0.5, seed=0), 40_000
    noise = [noisy(torch.zeros(n)) for _ in range(2)]
    assert all(torch.equal(e.square(), torch.full((n,), 0.25)) for e in noise)  # so the variance is sigma² exactly
    for signs in (noise[0], noise[1], noise[0] * noise[1], noise[0][1:] * noise[0][:-1]):  # fair and independent
        assert abs(signs.sign().mean()) <= 5 / math.sqrt(n)
    twin = TargetNoise(0.5, seed=0)
    assert torch.equal(noisy(targets) - targets != 0, torch.ones(n, dtype=torch.bool))
    assert torch.equal(twin(torch.zeros(n)), noise[0])
    assert torch.equal(TargetNoise(0.0)(targets), targets)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 5)])
def test_the_targets_of_a_regression_keep_their_shape_and_type(dtype, shape):
    drawn = TargetNoise(0.5)(torch.zeros(shape, dtype=dtype))
    assert (drawn.shape, drawn.dtype) == (torch.Size(shape), dtype)


@pytest.mark.parametrize(("lr", "h"), [(0.5, 1.0), (0.1, 2.0), (1.5, 1.0)])
def test_the_stationary_variance_on_a_quadratic(lr, h):
    """SGD with label noise on ½(√h w - y)² settles at the variance lambda / (2 - lr h), lambda = lr sigma² / B.

    It obeys s = (1 - lr h)² s + lr² (sigma²/B) h, so after T steps from zero it is (1 - (1 - lr h)^2T) of that.
    """
    n, sigma, B, steps, a = 40_000, 0.7, 2, 60, math.sqrt(h)
    w, targets, noisy = torch.zeros(n, dtype=torch.float64), torch.zeros(n, B, dtype=torch.float64), TargetNoise(0.7)
    for _ in range(steps):
        w.sub_(lr * (a * (a * w.unsqueeze(1) - noisy(targets))).mean(1))
    variance = lr * sigma**2 / B / (2 - lr * h) * (1 - (1 - lr * h) ** (2 * steps))
    squares = w.square()
    assert abs(squares.mean() - variance) <= 5 * squares.std() / math.sqrt(n)


def test_the_regularizer_that_the_page_names():
    """Under that variance S the drift is ½ ∇ tr(∇²L S), which is lambda ∇R for R = -1/(2 lr) tr log(1 - lr/2 ∇²L)."""
    lr, lam = 0.3, 0.01
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)

    def hessian(w):
        def loss(v):
            return 0.5 * (torch.tanh(v[0] * x + v[1]) * v[2] - x.cos()).square().mean()

        return torch.autograd.functional.hessian(loss, w, create_graph=True)

    w = torch.tensor([0.7, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    H, identity = hessian(w), torch.eye(3, dtype=torch.float64)
    S = lam * torch.linalg.inv(2 * identity - lr * H).detach()
    step = identity - lr * H.detach()
    torch.testing.assert_close(S, step @ S @ step + lr * lam * H.detach(), rtol=1e-12, atol=1e-15)  # stationary
    (drift,) = torch.autograd.grad(0.5 * (H * S).sum(), w, retain_graph=True)
    R = -torch.logdet(identity - lr / 2 * H) / (2 * lr)
    (gradient,) = torch.autograd.grad(R, w)
    torch.testing.assert_close(drift, lam * gradient, rtol=1e-10, atol=1e-14)
    small = -torch.logdet(identity - 5e-7 * H.detach()) / 2e-6  # as lr goes to 0: a quarter of the trace
    torch.testing.assert_close(small, H.detach().trace() / 4, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: LabelNoise(-0.1, 3), ArgumentError, r"probability is -0\.1, but it must be finite and at least 0"),
        (lambda: LabelNoise(1.1, 3), ArgumentError, r"probability is 1\.1, but it is a share"),
        (lambda: LabelNoise("0.1", 3), ArgumentTypeError, r"probability is '0\.1', which is no number"),
        (lambda: LabelNoise(0.1, 1), ArgumentError, "num_classes is 1, but it must be at least 2"),
        (lambda: LabelNoise(0.1, 3.0), ArgumentTypeError, r"num_classes is 3\.0, which is no whole number"),
        (lambda: LabelNoise(0.1, 2, ignore_index=1), ArgumentError, "ignore_index is 1, which is one of the 2 classes"),
        (lambda: LabelNoise(0.1, 2, ignore_index=None), ArgumentTypeError, "ignore_index is None"),
        (lambda: LabelNoise(0.1, 3, seed=-1), ArgumentError, "seed is -1, but it must be at least 0"),
        (lambda: LabelNoise(0.1, 3, rank=-1), ArgumentError, "rank is -1, but it must be at least 0.*None asks torch"),
        (lambda: LabelNoise(0.1, 3)([1, 2]), ArgumentTypeError, "labels are a list, but a tensor of class indices"),
        (lambda: LabelNoise(0.1, 3)(torch.ones(2)), ArgumentTypeError, r"torch\.float32.*before they are made one-hot"),
        (lambda: LabelNoise(0.1, 3)(torch.ones(2) > 0), ArgumentTypeError, r"labels are of type torch\.bool"),
        (lambda: LabelNoise(0.1, 3)(torch.tensor([0, 3])), ArgumentError, "labels contain 3, but there are 3 classes"),
        (lambda: LabelNoise(0.1, 3)(torch.tensor([-1])), ArgumentError, "labels contain -1, .*-100 is ignored"),
        (lambda: LabelNoise(0.1, 3).load_state_dict({"step": 1}), ArgumentError, r"\['step'\].*'calls' and 'seed'"),
        (lambda: TargetNoise(float("inf")), ArgumentError, "sigma is inf, but it must be finite"),
        (lambda: TargetNoise(0.1)(torch.ones(2).long()), ArgumentTypeError, r"torch\.int64.*take LabelNoise"),
        (lambda: TargetNoise(0.1)(3.0), ArgumentTypeError, "targets are of type float"),
    ],
)
def test_bad_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_refused_call_is_not_counted():
    noisy = LabelNoise(0.1, 3)
    with pytest.raises(ArgumentError):
        noisy(torch.tensor([7]))
    assert noisy.state_dict()["calls"] == 0

"""The monitor: what it reads is right, and nothing is another for its having been read."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import flatmin as fm
from flatmin.measures import Reading
from problems import closure_of, data, loss, mlp, same, seeded, snapshot, with_state

SGD = torch.optim.SGD


class Kept:
    """A tracker that keeps what it is told."""

    def __init__(self):
        self.told, self.closed = [], 0

    def log(self, metrics, step):
        self.told.append((step, dict(metrics)))

    def close(self):
        self.closed += 1


def block_traces(model, batch):
    """The traces of the diagonal blocks of the dense Hessian, by layer."""
    named = dict(model.named_parameters())

    def block(name):
        def f(value):
            weights = {n: value if n == name else p.detach() for n, p in named.items()}
            return nn.functional.cross_entropy(torch.func.functional_call(model, weights, batch[0]), batch[1])

        size = named[name].numel()
        return float(torch.func.hessian(f)(named[name].detach()).reshape(size, size).trace())

    layers = {}
    for name in named:
        layer = name.rpartition(".")[0]
        layers[layer] = layers.get(layer, 0.0) + block(name)
    return layers


def step(opt, model, batch, shell="probes"):
    if shell == "closure":
        return opt.step(closure_of(opt, model, batch))
    for probe in opt.probes():
        with probe:
            value = loss(model, batch)
            value.backward()
    opt.step()
    opt.zero_grad()
    return value.detach()


class TestTraceByLayer:
    def test_it_is_that_of_the_exact_blocks_within_its_standard_error(self):
        model, batch = mlp(), data()
        exact = block_traces(model, batch)
        opt = fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.003, trace_window=500)
        monitor = fm.Monitor(opt, every=500)
        for number in range(500):
            step(opt, model, batch, "closure")
            reading = monitor.log(number)
        total = sum(exact.values())
        assert list(reading.shares) == list(exact) == ["0", "2"]
        for layer in reading.layers:
            assert abs(layer.value - exact[layer.name]) < 4 * layer.stderr
            assert abs(layer.share - exact[layer.name] / total) < 4 * layer.share_stderr
            assert layer.share_stderr < 0.1
            assert layer.size == sum(p.numel() for p in model.get_submodule(layer.name).parameters())

    def test_of_an_attachment_too(self):
        model, batch = mlp(), data()
        exact = block_traces(model, batch)
        optimizer = SGD(model.parameters(), lr=0.0)
        handle = fm.attach(model, optimizer, 0.003, trace_window=500)
        monitor = fm.Monitor(handle, every=500)
        for number in range(500):
            for _ in range(2):
                (loss(model, batch) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
            reading = monitor.log(number)
        for layer in reading.layers:
            assert abs(layer.value - exact[layer.name]) < 4 * layer.stderr

    @pytest.mark.parametrize("groups", ["module", "parameter", {"weights": "*.weight"}])
    def test_layers_add_up_to_the_trace_and_shares_to_one(self, groups):
        model, batch = mlp(), data()
        opt = fm.NSO(SGD(model.parameters(), lr=0.05), sigma=0.01)
        for _ in range(5):
            step(opt, model, batch)
        layers = opt.layer_trace_estimates(groups)
        assert math.isclose(sum(layer.value for layer in layers), opt.trace_estimate.value, rel_tol=1e-12)
        assert math.isclose(layers.whole.stderr, opt.trace_estimate.stderr, rel_tol=1e-12)
        assert math.isclose(sum(layer.share for layer in layers), 1.0, rel_tol=1e-12)
        assert layers.num_matvecs == 5

    def test_rademacher_noise_on_a_diagonal_quadratic_gives_exact_shares(self):
        model = nn.ModuleDict({name: nn.Linear(2, 1, bias=False) for name in ("flat", "sharp")}).double()
        opt = fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.1, noise="rademacher")
        for _ in range(3):
            for probe in opt.probes():
                with probe:
                    (model["flat"].weight.square().sum() + 3 * model["sharp"].weight.square().sum()).backward()
            opt.step()
            opt.zero_grad()
        shares = {layer.name: (layer.share, layer.share_stderr) for layer in opt.layer_trace_estimates()}
        assert shares["flat"] == pytest.approx((0.25, 0.0), abs=1e-12)
        assert shares["sharp"] == pytest.approx((0.75, 0.0), abs=1e-12)

    def test_layers_that_stand_still_are_left_out(self):
        model, batch = mlp(), data()
        opt = fm.NSO(SGD(model.parameters(), lr=0.0), sigma={"0.*": 0.0, "*": 0.01})
        step(opt, model, batch)
        assert [layer.name for layer in opt.layer_trace_estimates()] == ["2"]

    def test_parameters_without_a_module_go_by_their_place(self):
        w = [nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2)]
        opt = fm.NSO(SGD(w, lr=0.0), sigma=0.1)
        for probe in opt.probes():
            with probe:
                sum(p.square().sum() for p in w).backward()
        opt.step()
        assert [layer.name for layer in opt.layer_trace_estimates()] == ["parameter 0", "parameter 1"]

    def test_samples_of_another_model_tell_nothing(self):
        small, large = mlp(), with_state(torch.float64)
        first, second = (fm.NSO(SGD(m.parameters(), lr=0.0), sigma=0.01) for m in (small, large))
        step(first, small, data())
        second._trace.load_state_dict(first.state_dict()["trace"])
        assert second.layer_trace_estimates() is None


def spread(gradients, weights):
    """The definition, from the gradients themselves."""
    mean = sum(w * g for w, g in zip(weights, gradients, strict=True))
    away = sum(w * (g - mean).square().sum() for w, g in zip(weights, gradients, strict=True))
    return math.sqrt(float(away / sum(weights))) / float(mean.norm() / sum(weights))


METHODS = {
    "pair": lambda base: fm.NSO(base, sigma=0.2),
    "two pairs": lambda base: fm.NSO(base, sigma=0.2, num_perturbations=2),
    "unequal weights": lambda base: fm.NSO(base, sigma=0.2, clean_weight=0.3),
    "one-sided": lambda base: fm.WPSGD(base, sigma=0.2, num_perturbations=3),
}


class TestNoiseToSignal:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("before", ["nothing", "zeros", "gradients of an earlier micro-batch"])
    def test_it_is_what_its_definition_says(self, method, before):
        model, batch = mlp(), data()
        opt = METHODS[method](SGD(model.parameters(), lr=0.0))
        if before != "nothing":
            for p in model.parameters():
                p.grad = torch.zeros_like(p) if before == "zeros" else torch.ones_like(p)
        gradients, weights = [], []
        opt.compare_gradients()
        for probe in opt.probes():
            with probe:
                value = loss(model, batch)
                found = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
                gradients.append(torch.cat([g.flatten() for g in found]))
                value.backward()
            weights.append(probe.weight)
        assert opt.noise_to_signal == pytest.approx(spread(gradients, weights), rel=1e-10)

    @pytest.mark.parametrize("shell", ["closure", "probes"])
    def test_on_a_quadratic_it_has_a_closed_form(self, shell):
        """For a pair it is |Hu| / |Hw|, and E|Hu|² = sigma² |H|_F²; the variance of |Hu|² is 2 sigma⁴ |H²|_F²."""
        a = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        h, w = a + a.T, nn.Parameter(torch.ones(5, dtype=torch.float64))
        sigma, n, squares = 0.1, 300, []
        opt = fm.NSO(SGD([w], lr=0.0), sigma=sigma)
        for _ in range(n):
            opt.compare_gradients()
            moved = []

            def closure(moved=moved):
                opt.zero_grad()
                moved.append(w.detach() - 1)
                value = w @ h @ w / 2
                value.backward()
                return value

            if shell == "closure":
                opt.step(closure)
            else:
                for probe in opt.probes():
                    with probe:
                        moved.append(w.detach() - 1)
                        (w @ h @ w / 2).backward()
                opt.step()
                opt.zero_grad()
            assert opt.noise_to_signal == pytest.approx(float((h @ moved[0]).norm() / h.sum(0).norm()), rel=1e-9)
            squares.append(opt.noise_to_signal**2)
        expected = sigma**2 * float(h.square().sum()) / float(h.sum(0).square().sum())
        error = math.sqrt(2 / n) * sigma**2 * float((h @ h).norm()) / float(h.sum(0).square().sum())
        assert abs(sum(squares) / n - expected) < 4 * error

    def test_of_an_attachment_it_compares_the_micro_batches_of_a_step(self):
        model, batches = mlp(), [data(seed=s) for s in (1, 2, 3)]
        optimizer = SGD(model.parameters(), lr=0.0)
        handle = fm.attach(model, optimizer, 0.1)
        assert handle.noise_to_signal is None
        for clears in (True, False):
            gradients = []
            handle.compare_gradients()
            for batch in batches:
                value = loss(model, batch)
                found = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
                gradients.append(torch.cat([g.flatten() for g in found]))
                (value / 3).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=clears)
            assert handle.noise_to_signal == pytest.approx(spread(gradients, [1 / 3] * 3), rel=1e-10)

    def test_low_precision_is_compared_in_single(self):
        w = nn.Parameter(torch.full((64,), 1.0, dtype=torch.bfloat16))
        opt = fm.NSO(SGD([w], lr=0.0), sigma=0.1)
        opt.compare_gradients()
        gradients = []
        for probe in opt.probes():
            with probe:
                w.float().square().sum().backward()
                gradients.append(2 * w.detach().float())
        assert opt.noise_to_signal == pytest.approx(spread(gradients, [0.5, 0.5]), rel=0.02)

    def test_it_is_measured_when_asked_for_alone_and_not_where_there_is_none(self):
        model, batch = mlp(), data()
        for build in (lambda b: fm.SAM(b, rho=0.1), fm.Plain, lambda b: fm.WPSGD(b, sigma=0.1)):
            opt = build(SGD(model.parameters(), lr=0.0))
            opt.compare_gradients()
            step(opt, model, batch)
            assert opt.noise_to_signal is None
        opt = fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.1)
        step(opt, model, batch)
        assert opt.noise_to_signal is None
        opt.compare_gradients()
        step(opt, model, batch)
        first = opt.noise_to_signal
        step(opt, model, batch)
        assert opt.noise_to_signal == first

    def test_nothing_is_kept_of_the_gradients(self):
        model, batch = mlp(), data()
        opt = fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.1)
        opt.compare_gradients()
        step(opt, model, batch)
        assert not opt._compared._before
        assert not opt._compared._origin


def run(shell, *, monitored, steps=5):
    """Train a model with dropout and batch-norm; return everything that a monitor could have touched."""
    model, batch = with_state(), data(dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        source = fm.attach(model, optimizer, 0.05) if shell == "attach" else fm.NSO(optimizer, sigma=0.05)
        monitor = fm.Monitor(source, model, every=2, to=[Kept()]) if monitored else None
        gradients = []
        for number in range(steps):
            if shell == "attach":
                for _ in range(2):
                    value = loss(model, batch) / 2
                    value.backward()
                gradients += [p.grad.clone() for p in model.parameters()]
                optimizer.step()
                optimizer.zero_grad()
            elif shell == "probes":
                for probe in source.probes():
                    with probe:
                        value = loss(model, batch)
                        value.backward()
                gradients += [p.grad.clone() for p in model.parameters()]
                source.step()
                source.zero_grad()
            else:
                value = step(source, model, batch, shell)
                gradients += [p.grad.clone() for p in model.parameters()]
            if monitored:
                monitor.log(number, loss=value)
        momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
        return [*snapshot(model).values(), *gradients, *momenta, torch.get_rng_state()]


@pytest.mark.parametrize("shell", ["closure", "probes", "attach"])
def test_training_is_bit_for_bit_what_it_is_without(shell):
    assert same(run(shell, monitored=True), run(shell, monitored=False))


@pytest.mark.parametrize("interrupted", [3, 4, 5])
def test_a_run_that_goes_on_from_checkpoints_reads_the_same(interrupted):
    def begun():
        model = mlp()
        opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma=0.05)
        return model, opt, fm.Monitor(opt, model, every=3)

    def go(parts, numbers):
        readings = []
        for number in numbers:
            step(parts[1], parts[0], data())
            readings.append(parts[2].log(number))
        return [reading.metrics() for reading in readings if reading is not None]

    whole = go(begun(), range(12))
    first = begun()
    told = go(first, range(interrupted))
    states = pickle.loads(pickle.dumps([part.state_dict() for part in first]))
    second = begun()
    for part, state in zip(second, states, strict=True):
        part.load_state_dict(state)
    assert told + go(second, range(interrupted, 12)) == whole
    assert all("noise_to_signal" in metrics for metrics in whole)


class TestCounts:
    def test_gradient_evaluations_are_points(self):
        model, batch = mlp(), data()
        for build, points in (
            (lambda b: fm.NSO(b, sigma=0.1, num_perturbations=2), 4),
            (lambda b: fm.SAM(b, rho=0.1), 2),
            (fm.Plain, 1),
        ):
            opt = build(SGD(model.parameters(), lr=0.0))
            for shell in ("closure", "probes"):
                step(opt, model, batch, shell)
            assert opt.gradient_evaluations == 2 * points
            assert copy.deepcopy(opt).gradient_evaluations == 2 * points

    def test_forward_passes_are_those_of_training(self):
        model, batch = mlp(), data()
        opt = fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.1)
        monitor = fm.Monitor(opt, model, every=1)
        for probe in opt.probes():
            with probe:
                for _ in range(3):
                    (loss(model, batch) / 3).backward()
        opt.step()
        with torch.no_grad():
            model(batch[0])
        model.eval()
        model(batch[0])
        model.train()
        fm.trace(fm.Hessian(model, nn.functional.cross_entropy, [batch]), num_matvecs=2)
        reading = monitor.log(0)
        assert (reading.forward_passes, reading.gradient_evaluations) == (6, 2)

    def test_copies_of_the_model_count_on_their_own_and_the_hook_goes(self):
        model, batch = mlp(), data()
        opt = fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.1)
        with fm.Monitor(opt, model, every=1) as monitor:
            copy.deepcopy(model)(batch[0])
            pickle.loads(pickle.dumps(model))(batch[0])
            model(batch[0])
            assert monitor.log(0).forward_passes == 1
        assert not model._forward_pre_hooks


class TestTrackers:
    def test_they_are_told_every_so_many_steps_and_closed_once(self):
        model, batch, kept, losses = mlp(), data(), Kept(), []
        opt = fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.1)

        class Unread:
            def __float__(self):
                raise AssertionError

        with fm.Monitor(opt, model, every=2, to=[kept]) as monitor:
            for number in range(1, 6):
                losses.append(step(opt, model, batch).requires_grad_())
                monitor.log(number, loss=Unread() if number % 2 else losses[-1])
        monitor.close()
        assert kept.closed == 1
        assert [number for number, _ in kept.told] == [2, 4]
        number, metrics = kept.told[-1]
        assert metrics == {"loss": float(losses[3].detach()), **monitor.latest.metrics()}
        assert set(metrics) == {
            "loss", "hessian_trace", "hessian_trace_stderr", "noise_to_signal", "gradient_evaluations",
            "forward_passes", *(f"hessian_trace_share{e}/{n}" for e in ("", "_stderr") for n in ("0", "2")),
        }  # fmt: skip

    def test_one_sample_has_no_standard_error_and_other_methods_no_trace(self):
        model, batch = mlp(), data()
        noisy = fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.1)
        step(noisy, model, batch)
        assert not any("stderr" in name for name in Reading.of(noisy, groups="module").metrics())
        assert Reading.of(fm.SAM(SGD(model.parameters(), lr=0.0), rho=0.1)).metrics() == {"gradient_evaluations": 0.0}
        assert Reading.of(SGD(model.parameters(), lr=0.0)).metrics() == {}

    def test_wrappers_of_frameworks_are_looked_into(self):
        class Wrapped(SGD):
            def __init__(self, optimizer):
                self.optimizer = optimizer

        opt = fm.NSO(SGD(mlp().parameters(), lr=0.0), sigma=0.1)
        assert fm.Monitor(Wrapped(opt), every=1).log(0).gradient_evaluations == 0

    @pytest.mark.parametrize(
        ("build", "error", "message"),
        [
            (lambda m, o: fm.Monitor(m), fm.ArgumentTypeError, r"source is a Sequential, which knows no curvature"),
            (lambda m, o: fm.Monitor(o, o), fm.ArgumentTypeError, r"model is a NSO, but a torch.nn.Module"),
            (lambda m, o: fm.Monitor(o, every=0), fm.ArgumentError, r"every is 0, but it must be at least 1"),
            (
                lambda m, o: fm.Monitor(o, to=[print]),
                fm.ArgumentTypeError,
                r"builtin_function.*no log\(metrics, step\)",
            ),
            (lambda m, o: fm.Monitor(o, groups="layers"), fm.ArgumentError, r"groups is 'layers'.*'module'"),
            (
                lambda m, o: fm.Monitor(o, every=1, to=[Kept()]).log(0, loss=torch.ones(2)),
                fm.ArgumentTypeError,
                r"loss is a Tensor, but a number.*loss=loss.mean\(\)",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, build, error, message):
        model = seeded(mlp)
        with pytest.raises(error, match=message):
            build(model, fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.1))

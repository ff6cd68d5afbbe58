"""Loops over Accelerate against loops written by hand, on digits."""

import contextlib

import pytest
import torch

import flatmin as fm
from integrations.tasks import digits, network, steps_of
from problems import same, snapshot

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed (the extra trainer)")

from flatmin.integrations.accelerate import attach, probes  # noqa: E402

METHODS = {
    "nso": lambda base: fm.NSO(base, sigma=0.02, seed=5),
    "nso-mixed": lambda base: fm.NSO(base, sigma=0.02, num_perturbations=2, clean_weight=0.25),
    "wpsgd": lambda base: fm.WPSGD(base, sigma=0.02, num_perturbations=2),
    "sam": lambda base: fm.SAM(base, rho=0.05),
    "usam": lambda base: fm.USAM(base, rho=0.05),
    "asam": lambda base: fm.ASAM(base, rho=0.5),
    "rsam": lambda base: fm.RSAM(base, rho=0.05, sigma=0.01),
}
NOISE = ("nso", "nso-mixed", "wpsgd")
# To Accelerate ASAM is SAM, USAM is RSAM and WP-SGD is NSO: they differ in what the library's own tests see.
SLOW = ("asam", "usam", "wpsgd")
every_method = pytest.mark.parametrize(
    "method", [pytest.param(method, marks=[pytest.mark.slow] * (method in SLOW)) for method in METHODS]
)
cross_entropy = torch.nn.functional.cross_entropy


def micro_batches(size=6):
    images, classes = digits()
    return list(zip(images.split(size), classes.split(size), strict=True))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def prepared(build, parts=2, model=None, **options):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=parts, **options)
    model = network(dropout=0.2) if model is None else model
    return accelerator, *accelerator.prepare(model, build(sgd(model)))


def run(accelerator, model, optimizer, batches, *, clip=0.5):
    """The loop of Accelerate's documentation, with the points of a method around forward and backward."""
    torch.manual_seed(0)
    for x, y in batches:
        with accelerator.accumulate(model):
            for probe in probes(accelerator, optimizer):
                with probe:
                    accelerator.backward(cross_entropy(model(x), y))
            if accelerator.sync_gradients and clip:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()


def by_hand(model, optimizer, batches, parts=2, *, clip=0.5, autocast=False):
    torch.manual_seed(0)
    for step in steps_of(batches, parts, len(batches) // parts):
        for x, y in step:
            for probe in optimizer.probes(loss_scale=1 / parts):
                with probe:
                    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                        output = model(x)
                    (cross_entropy(output.float(), y) / parts).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()


@every_method
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accumulation_is_the_loop_written_by_hand(method, precision):
    accelerator, model, optimizer = prepared(METHODS[method], mixed_precision=precision)
    run(accelerator, model, optimizer, micro_batches())
    other = network(dropout=0.2)
    by_hand(other, METHODS[method](sgd(other)), micro_batches(), autocast=precision == "bf16")
    assert same(snapshot(accelerator.unwrap_model(model)), snapshot(other))


@pytest.mark.parametrize("method", NOISE)
def test_accumulation_equals_the_big_batch(method):
    results = []
    for size, parts in ((12, 1), (4, 3)):
        accelerator, model, optimizer = prepared(METHODS[method], parts, network())
        run(accelerator, model, optimizer, micro_batches(size))
        results.append(snapshot(model))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=2e-6)


@every_method
def test_micro_batches_inside_each_probe_equal_the_big_batch(method):
    results = []
    for size, parts in ((12, 1), (4, 3)):
        accelerator, model, optimizer = prepared(METHODS[method], 1, network())
        for step in steps_of(micro_batches(size), parts, 4):
            for probe in probes(accelerator, optimizer):
                with probe:
                    for number, (x, y) in enumerate(step):
                        last = number + 1 == parts
                        with contextlib.nullcontext() if last else accelerator.no_sync(model):
                            accelerator.backward(cross_entropy(model(x), y) / parts)
            optimizer.step()
            optimizer.zero_grad()
        results.append(snapshot(model))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=2e-6)


@every_method
def test_a_grad_scaler_changes_nothing_but_rounding(method):
    """fp16 needs a GPU; what scales its losses works on a CPU too."""
    results = []
    for scale in (None, 2.0**12):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        if scale is not None:
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
        model = network()
        model, optimizer = accelerator.prepare(model, METHODS[method](sgd(model)))
        run(accelerator, model, optimizer, micro_batches(), clip=None)
        results.append(snapshot(model))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=2e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 in Accelerate needs a GPU")
@every_method
def test_fp16(method):
    results = []
    for precision in ("no", "fp16"):
        accelerator = accelerate.Accelerator(mixed_precision=precision)
        model = network()
        model, optimizer = accelerator.prepare(model, METHODS[method](sgd(model)))
        run(accelerator, model, optimizer, [(x.cuda(), y.cuda()) for x, y in micro_batches()])
        results.append(snapshot(model))
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=0.1, atol=5e-3)


@pytest.mark.parametrize("method", ["nso", "sam"])
def test_a_state_that_is_loaded_goes_on_as_if_nothing_had_been(method, tmp_path):
    parts = micro_batches()
    accelerator, model, optimizer = prepared(METHODS[method])
    run(accelerator, model, optimizer, parts[:4])
    accelerator.save_state(str(tmp_path))
    run(accelerator, model, optimizer, parts[4:])
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, other, loaded = prepared(METHODS[method])
    accelerator.load_state(str(tmp_path))
    run(accelerator, other, loaded, parts[4:])
    assert same(snapshot(model), snapshot(other))
    assert loaded.param_groups[0]["perturbation_step"] == 4
    if method == "nso":
        assert loaded.optimizer.trace_estimate.value == optimizer.optimizer.trace_estimate.value


def plain_loop(accelerator, model, optimizer, batches):
    """Accelerate's loop, not edited."""
    torch.manual_seed(0)
    for x, y in batches:
        with accelerator.accumulate(model):
            accelerator.backward(cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()


def test_attach_is_that_of_a_loop_written_by_hand():
    accelerator, model, optimizer = prepared(lambda base: base)
    with attach(accelerator, model, optimizer, sigma=0.02, seed=5) as handle:
        plain_loop(accelerator, model, optimizer, micro_batches())
    other = network(dropout=0.2)
    plain = sgd(other)
    torch.manual_seed(0)
    with fm.attach(other, plain, sigma=0.02, seed=5) as own:
        for step in steps_of(micro_batches(), 2, 4):
            for x, y in step:
                (cross_entropy(other(x), y) / 2).backward()
            plain.step()
            plain.zero_grad()
    assert same(snapshot(model), snapshot(other))
    assert handle.trace_estimate.value == own.trace_estimate.value
    assert handle.trace_estimate.num_matvecs == 4


def test_attach_before_prepare_survives_the_round_trip_of_the_state():
    results = []
    for early in (True, False):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = network()
        optimizer = sgd(model)
        if early:
            handle = fm.attach(model, optimizer, sigma={"1.*": 0.0, "*": 0.02}, seed=5)
        model, optimizer = accelerator.prepare(model, optimizer)
        if not early:
            handle = attach(accelerator, model, optimizer, sigma={"1.*": 0.0, "*": 0.02}, seed=5)
        plain_loop(accelerator, model, optimizer, micro_batches())
        handle.remove()
        results.append(snapshot(model))
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    assert same(*results)


def test_an_attachment_that_is_saved_goes_on_between_the_points_of_a_pair(tmp_path):
    """After an odd number of micro-batches the next one is the mirror image."""
    parts = micro_batches()
    accelerator, model, optimizer = prepared(lambda base: base, 1)
    handle = attach(accelerator, model, optimizer, sigma=0.02)
    plain_loop(accelerator, model, optimizer, parts[:3])
    accelerator.save_state(str(tmp_path))
    plain_loop(accelerator, model, optimizer, parts[3:])
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, other, loaded = prepared(lambda base: base, 1)
    again = attach(accelerator, other, loaded, sigma=0.02)
    accelerator.load_state(str(tmp_path))
    plain_loop(accelerator, other, loaded, parts[3:])
    assert same(snapshot(model), snapshot(other))
    assert again.trace_estimate.value == handle.trace_estimate.value
    assert again.trace_estimate.num_matvecs == 8


def test_what_cannot_work_is_refused():
    accelerator, model, optimizer = prepared(lambda base: base)
    with pytest.raises(
        fm.errors.ArgumentTypeError, match=r"without a method of flatmin in it.*before accelerator.prep"
    ):
        next(probes(accelerator, optimizer))
    accelerator, model, optimizer = prepared(lambda base: fm.SharpnessAware(base, rho=0.1, exact=True))
    with pytest.raises(fm.errors.ArgumentError, match="SharpnessAware asks for the gradient over all data"):
        run(accelerator, model, optimizer, micro_batches())
    accelerator, model, optimizer = prepared(METHODS["nso"])
    x, y = micro_batches()[0]

    def closure():
        loss = cross_entropy(model(x), y)
        accelerator.backward(loss)
        return loss

    with pytest.raises(fm.errors.ClosureError, match="Accelerate calls it for the last of them alone"):
        for _ in range(2):
            with accelerator.accumulate(model):
                optimizer.step(closure)


def test_gradients_that_stay_on_their_rank_are_refused_for_methods_that_look_into_them(monkeypatch):
    accelerator, model, optimizer = prepared(METHODS["sam"])
    monkeypatch.setattr(accelerate.Accelerator, "num_processes", 2)
    with pytest.raises(fm.errors.ArgumentError, match=r"SAM looks into gradients.*on each of 2 ranks.*sync_each_batch"):
        run(accelerator, model, optimizer, micro_batches())
    accelerator, model, optimizer = prepared(METHODS["nso"])
    run(accelerator, model, optimizer, micro_batches())

"""Whatever goes wrong, the weights are clean afterwards and the message helps."""

import copy

import pytest
import torch

import flatmin as fm
from flatmin import ArgumentError, ArgumentTypeError, ClosureError, NonFiniteError, ProbeError
from methods_table import METHODS, every_method, methods_with_radius, wrapping_methods
from problems import closure_of, data, loss, mlp, same, snapshot

SGD = torch.optim.SGD


class OutOfMemory(Exception):
    pass


def failing(closure, at):
    calls = []

    def run():
        calls.append(1)
        value = closure()
        if len(calls) == at:
            raise OutOfMemory
        return value

    return run


@pytest.mark.loop("exceptions")
@every_method
@pytest.mark.parametrize("last", [False, True])
def test_an_exception_in_a_closure_restores_and_training_goes_on_as_if_nothing_had_happened(method, last):
    models = [mlp(), mlp()]
    for model, fails in zip(models, (True, False), strict=True):
        opt = method.build(SGD(model.parameters(), lr=0.1, momentum=0.9))
        closure = closure_of(opt, model, data())
        opt.step(closure)
        if fails:
            before = snapshot(model)
            with pytest.raises(OutOfMemory):
                opt.step(failing(closure, method.evaluations if last else 1))
            assert same(snapshot(model), before)
        opt.step(closure)
    assert same(snapshot(models[0]), snapshot(models[1]))


@pytest.mark.loop("exceptions")
@every_method
def test_an_exception_inside_a_probe_restores(method):
    for fail_at in range(method.evaluations):
        model = mlp()
        before = snapshot(model)
        opt = method.build(SGD(model.parameters(), lr=0.1))
        with pytest.raises(OutOfMemory):
            for number, probe in enumerate(opt.probes()):
                with probe:
                    loss(model, data()).backward()
                    if number == fail_at:
                        raise OutOfMemory
        assert same(snapshot(model), before)


@pytest.mark.loop("exceptions")
@every_method
def test_an_exception_between_probes_and_a_break_restore(method):
    model = mlp()
    before = snapshot(model)
    opt = method.build(SGD(model.parameters(), lr=0.1))
    with pytest.raises(OutOfMemory):
        for probe in opt.probes():
            with probe:
                loss(model, data()).backward()
            raise OutOfMemory
    assert same(snapshot(model), before)
    for probe in opt.probes():
        with probe:
            loss(model, data()).backward()
        break
    assert same(snapshot(model), before)
    with pytest.raises(ProbeError, match=r"before the loop over probes had ended.*weights are clean"):
        opt.step()
    assert same(snapshot(model), before)
    opt.zero_grad()
    opt.step(closure_of(opt, model, data()))  # and on it goes


@every_method
def test_a_loop_held_open_by_someone_is_closed_by_the_next_one(method):
    model = mlp()
    before = snapshot(model)
    opt = method.build(SGD(model.parameters(), lr=0.0))
    held = opt.probes()
    with next(held):
        loss(model, data()).backward()
    opt.step(closure_of(opt, model, data()))
    assert same(snapshot(model), before)


def test_a_probe_must_be_entered_once():
    model = mlp()
    opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma=0.1)
    with pytest.raises(ProbeError, match=r"not entered.*\n.*for probe in opt\.probes\(\)"):
        for _ in opt.probes():
            loss(model, data()).backward()
    for probe in opt.probes():
        with probe:
            loss(model, data()).backward()
        with pytest.raises(ProbeError, match="entered twice"), probe:
            pass
        break


def test_going_on_after_a_failed_probe_is_refused():
    model = mlp()
    before = snapshot(model)
    opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma=0.1)
    with pytest.raises(ProbeError, match="one of its gradients is missing"):
        for probe in opt.probes():
            try:
                with probe:
                    raise OutOfMemory
            except OutOfMemory:
                continue
    assert same(snapshot(model), before)


@pytest.mark.loop("NaN")
@every_method
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_in_one_evaluation_is_refused_with_the_weights_and_the_state_as_they_were(method, number, what):
    model = mlp()
    opt = method.build(SGD(model.parameters(), lr=0.1, momentum=0.9))
    plain, calls = closure_of(opt, model, data()), []
    opt.step(plain)
    before, state = snapshot(model), copy.deepcopy(opt.state_dict())

    def closure():
        calls.append(1)
        value = plain()
        if len(calls) == min(number, method.evaluations):
            if what == "loss":
                return value * float("nan")
            model[0].bias.grad[0] = float("inf")
        return value

    # A NaN in the gradient at w makes SAM's second point NaN, whose loss is what is seen first.
    with pytest.raises(NonFiniteError, match=r"(loss|gradient) at step 1 is.*(learning rate|radius)"):
        opt.step(closure)
    assert same(snapshot(model), before)
    after = opt.state_dict()
    assert after["param_groups"] == state["param_groups"]
    for now, then in zip(after["state"].values(), state["state"].values(), strict=True):
        assert same(now, then)
    opt.step(plain)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.loop("NaN")
@every_method
def test_nan_after_a_loop_over_probes_is_refused_too_unless_told_otherwise(method):
    for check in (None, False):
        model = mlp()
        before = snapshot(model)
        opt = method.build(SGD(model.parameters(), lr=0.1), check_finite=check)
        for probe in opt.probes():
            with probe:
                (loss(model, data()) * float("nan")).backward()
        if check is None:
            with pytest.raises(NonFiniteError, match=r"gradient at step 0 is NaN or infinite in 4 of 4 parameters"):
                opt.step()
            assert same(snapshot(model), before)
        else:
            opt.step()
            assert model[0].weight.isnan().all()


@every_method
def test_a_closure_without_return_or_without_backward(method):
    model = mlp()
    before = snapshot(model)
    opt = method.build(SGD(model.parameters(), lr=0.1))
    with pytest.raises(ClosureError, match=r"returned None.*return loss"):
        opt.step(lambda: loss(model, data()).backward())
    with pytest.raises(ClosureError, match=r"left no gradient.*loss\.backward\(\)"):
        opt.step(lambda: loss(model, data()))
    assert same(snapshot(model), before)
    assert opt.param_groups[0]["perturbation_step"] == 0


@pytest.mark.parametrize(
    ("method", "kwargs", "error", "message"),
    [(m, *bad) for m in METHODS for bad in m.bad_arguments],
    ids=lambda value: str(value)[:40],
)
def test_bad_arguments(method, kwargs, error, message):
    model = mlp()
    with pytest.raises(error, match=message):
        method.build(SGD(model.parameters(), lr=0.1), **kwargs)


@wrapping_methods
def test_a_base_that_is_none(method):
    model = mlp()
    with pytest.raises(ArgumentTypeError, match=r"base is the class SGD; pass an instance"):
        method.build(SGD)
    with pytest.raises(ArgumentTypeError, match=r"base is a generator, which is no torch\.optim\.Optimizer"):
        method.build(model.parameters())
    with pytest.raises(ArgumentError, match=r"displaces the weights itself.*opt\.base"):
        method.build(fm.SAM(SGD(model.parameters(), lr=0.1), rho=0.1))
    with pytest.raises(ArgumentError, match=r"None of the 4 parameters.*requires a gradient"):
        method.build(SGD(mlp().requires_grad_(False).parameters(), lr=0.1))


@methods_with_radius
def test_a_bad_radius_in_a_parameter_group(method):
    model = mlp()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), **method.at(-1.0)}]
    with pytest.raises(ArgumentError, match=rf"{method.radius} of a parameter group is -1\.0"):
        method.build(SGD(groups, lr=0.1))


@methods_with_radius
def test_a_schedule_that_goes_wrong_later(method):
    model = mlp()
    opt = method.build(SGD(model.parameters(), lr=0.1), **method.at(lambda step: 0.1 - step))
    opt.step(closure_of(opt, model, data()))
    before = snapshot(model)
    with pytest.raises(ArgumentError, match=rf"{method.radius} at step 1 is -0\.9"):
        opt.step(closure_of(opt, model, data()))
    assert same(snapshot(model), before)


def test_a_base_that_needs_a_closure_says_so():
    model = mlp()
    opt = fm.NSO(torch.optim.LBFGS(model.parameters()), sigma=0.01)
    with pytest.raises(ClosureError, match=r"LBFGS evaluates the loss as often as it likes"):
        opt.step()


@every_method
def test_weights_are_back_as_soon_as_a_failed_probe_is_left(method):
    model = mlp()
    before = snapshot(model)
    opt = method.build(SGD(model.parameters(), lr=0.1))
    loop = opt.probes()
    with pytest.raises(OutOfMemory), next(loop):
        raise OutOfMemory
    assert same(snapshot(model), before)  # while the loop is still held


@every_method
def test_a_probe_whose_loop_has_ended_is_refused(method):
    model = mlp()
    before = snapshot(model)
    opt = method.build(SGD(model.parameters(), lr=0.1))
    stray = next(opt.probes())  # nobody holds the loop
    with pytest.raises(ProbeError, match="loop has ended"), stray:
        pass
    held = opt.probes()
    with next(held):
        loss(model, data()).backward()
    opt.step(closure_of(opt, model, data()))
    with pytest.raises(ProbeError, match="loop has ended"):
        next(held)
    assert not same(snapshot(model), before)


@every_method
def test_a_checkpoint_loaded_into_a_held_loop_ends_it(method):
    model = mlp()
    before = snapshot(model)
    opt = method.build(SGD(model.parameters(), lr=0.1))
    held = opt.probes()
    with next(held):
        loss(model, data()).backward()
    opt.load_state_dict(opt.state_dict())
    assert same(snapshot(model), before)
    with pytest.raises(ProbeError, match="loop has ended"):
        next(held)


@every_method
def test_a_step_inside_a_closure_is_refused(method):
    model = mlp()
    before = snapshot(model)
    opt = method.build(SGD(model.parameters(), lr=0.0))
    inner = closure_of(opt, model, data())
    with pytest.raises(ProbeError, match="loop has ended"):
        opt.step(lambda: opt.step(inner))
    assert same(snapshot(model), before)


@pytest.mark.parametrize("inside", [True, False])
def test_clearing_gradients_in_the_loop_is_refused(inside):
    model = mlp()
    before = snapshot(model)
    opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma=0.1)
    with pytest.raises(ProbeError, match=r"zero_grad\(\) came inside"):
        for probe in opt.probes():
            if not inside:
                opt.zero_grad()
            with probe:
                if inside:
                    opt.zero_grad()
                loss(model, data()).backward()
    assert same(snapshot(model), before)
    opt.zero_grad()  # outside it is as ever


@every_method
def test_probes_without_backward_are_refused(method):
    model = mlp()
    before = snapshot(model)
    opt = method.build(SGD(model.parameters(), lr=0.1))
    with pytest.raises(ProbeError, match=r"No parameter has a gradient.*loss\.backward\(\) was not called"):
        for probe in opt.probes():
            with probe:
                loss(model, data())
    assert same(snapshot(model), before)


@every_method
def test_hooks_that_step_during_backward_are_refused(method):
    model = mlp()
    opt = method.build(SGD(model.parameters(), lr=0.1))
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with pytest.raises(ProbeError, match="a hook steps and clears them during backward"):
        for probe in opt.probes():
            with probe:
                loss(model, data()).backward()


@pytest.mark.filterwarnings("ignore:.*nothing was perturbed:UserWarning")
@wrapping_methods
def test_after_a_failed_closure_a_plain_step_is_a_plain_step(method):
    model, other = mlp(), mlp()
    opt = method.build(SGD(model.parameters(), lr=0.1))
    with pytest.raises(OutOfMemory):
        opt.step(failing(closure_of(opt, model, data()), 1))
    for net in (model, other):
        loss(net, data()).backward()
    opt.step()
    SGD(other.parameters(), lr=0.1).step()
    assert same(snapshot(model), snapshot(other))


@every_method
def test_gradients_of_an_unfinished_loop_are_dropped(method):
    model = mlp()
    opt = method.build(SGD(model.parameters(), lr=0.1))
    before = snapshot(model)
    for probe in opt.probes():
        with probe:
            loss(model, data()).backward()
        break
    with pytest.raises(ProbeError, match="gradients were dropped"):
        opt.step()
    opt.step()
    assert same(snapshot(model), before)


@every_method
@pytest.mark.parametrize(
    ("returned", "message"),
    [(lambda v: (v, v), "a tuple"), (lambda v: {"loss": v}, "a dict"), (lambda v: v * torch.ones(2), r"shape \(2,\)")],
)
def test_a_loss_that_is_no_number(method, returned, message):
    model = mlp()
    opt = method.build(SGD(model.parameters(), lr=0.1))
    closure = closure_of(opt, model, data())
    with pytest.raises(ClosureError, match=rf"returned .*{message}.*one number"):
        opt.step(lambda: returned(closure()))


@every_method
def test_parameters_that_cannot_be_displaced(method):
    whole = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ArgumentError, match=r"number 0 and 1 share their memory.*one Parameter in both places"):
        method.build(SGD([whole, torch.nn.Parameter(whole.data)], lr=0.1))
    with pytest.raises(ArgumentError, match="not initialised yet"):
        method.build(SGD(torch.nn.LazyLinear(3).parameters(), lr=0.1))
    with pytest.raises(ArgumentTypeError, match="model is a str"):
        method.build(SGD([whole], lr=0.1), model="resnet")
    with pytest.raises(ArgumentTypeError, match=r"scaler is 3, but a torch\.amp\.GradScaler"):
        method.build(SGD([whole], lr=0.1)).probes(scaler=3)


def test_gradients_whose_sum_overflows_are_finite_all_the_same():
    w = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    opt = fm.NSO(SGD([w], lr=0.0), sigma=0.0)
    w.grad = torch.full_like(w, 1e308)
    opt.step()
    w.grad[2] = float("nan")
    with pytest.raises(NonFiniteError):
        opt.step()

"""The weights stay where a forward pass saw them until its backward pass has ended, and not a moment longer."""

import collections
import dataclasses
import types
from typing import NamedTuple

import pytest
import torch
from torch import distributions, nn

from attach_cases import COUNT, attached, close, displacement, gradients, gradients_at, sgd, weights
from problems import data, loss, mlp, same


def is_displaced(model, before, number=0):
    moved = [p.detach() - w for p, w in zip(model.parameters(), before)]
    expected = displacement(model, number)
    return all(torch.allclose(m, u, rtol=1e-9, atol=1e-14) for m, u in zip(moved, expected))


class Boom(Exception):
    pass


class Fragile(torch.autograd.Function):
    """Does nothing, and fails in the backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise Boom


@pytest.mark.loop("lr = 0", method="attach")
def test_displaced_from_forward_to_the_end_of_backward():
    model = mlp()
    optimizer, _ = attached(model)
    before, seen = weights(model), []
    model[0].weight.register_hook(lambda _: seen.append(is_displaced(model, before)))  # the last gradient but one
    output = loss(model, data())
    assert is_displaced(model, before)
    output.backward()
    assert same(weights(model), before)
    assert seen == [True]
    assert optimizer.param_groups[0][COUNT] == 1
    del output
    assert optimizer.param_groups[0][COUNT] == 1


def test_an_output_thrown_away_restores_and_is_no_micro_batch():
    model = mlp()
    optimizer, _ = attached(model)
    before = weights(model)
    for _ in range(2):
        output = model(data()[0])
        assert is_displaced(model, before)
        del output
        assert same(weights(model), before)
    assert COUNT not in optimizer.param_groups[0]


@pytest.mark.loop("exceptions", method="attach")
@pytest.mark.parametrize("where", ["forward", "hook", "loss", "backward"])
def test_an_exception_restores_and_training_goes_on_as_if_nothing_had_happened(where):
    class Net(nn.Module):
        fails = False

        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            hidden = self.inner[:2](x)
            if self.fails and where == "forward":
                raise Boom
            return self.inner[2](Fragile.apply(hidden) if self.fails and where == "backward" else hidden)

    def fail(*_):
        raise Boom

    ends = []
    for fails in (False, True):
        model = Net()
        optimizer, _ = attached(model, momentum_sgd := sgd(model, momentum=0.9))
        for step in range(3):
            if fails and step == 1:
                model.fails, before = True, weights(model)
                handle = model.register_forward_hook(fail) if where == "hook" else None

                def run(model=model):
                    value = loss(model, data())
                    if where == "loss":
                        raise Boom
                    value.backward()

                with pytest.raises(Boom):
                    run()
                assert same(weights(model), before)
                model.fails = False
                if handle is not None:
                    handle.remove()
                optimizer.zero_grad()
            loss(model, data()).backward()
            momentum_sgd.step()
            optimizer.zero_grad()
        ends.append(weights(model))
    assert same(*ends)


@pytest.mark.loop("exceptions", method="attach")
def test_a_failed_backward_restores_while_everything_is_still_held():
    model = mlp()
    attached(model)
    before = weights(model)
    output = model[:2](data()[0]), model(data()[0])
    value = Fragile.apply(output[1]).sum()
    with pytest.raises(Boom):
        value.backward()  # which fails before a gradient arrives at the model: nothing tells
    assert is_displaced(model, before)
    del value, output
    assert same(weights(model), before)

    class Inside(nn.Sequential):
        def forward(self, x):
            return self[1](Fragile.apply(self[0](x)))

    model = Inside(nn.Linear(6, 3), nn.Linear(3, 1)).double()
    attached(model)
    before, output = weights(model), model(data()[0])
    with pytest.raises(Boom):
        output.sum().backward()
    assert same(weights(model), before)


def test_two_losses_of_one_forward_pass():
    """The graph is retained by the first backward pass, so the weights wait for the second."""
    model, batch = mlp(), data()
    optimizer, _ = attached(model)
    before = weights(model)
    output = model(batch[0])
    one, two = nn.functional.cross_entropy(output, batch[1]), output.square().mean()
    one.backward(retain_graph=True)
    assert is_displaced(model, before)
    two.backward()
    assert same(weights(model), before)

    def both(model, batch):
        output = model(batch[0])
        return nn.functional.cross_entropy(output, batch[1]) + output.square().mean()

    close(gradients(model), gradients_at(model, displacement(model, 0), batch, both))
    assert optimizer.param_groups[0][COUNT] == 1


def test_a_graph_that_is_retained_for_nothing_ends_with_the_step():
    model = mlp()
    optimizer, _ = attached(model, sgd(model, lr=0.0))
    before, kept = weights(model), []
    for number in range(3):
        kept.append(loss(model, data()))
        assert is_displaced(model, before, number)
        kept[-1].backward(retain_graph=True)
        optimizer.step()
        assert same(weights(model), before)
    assert optimizer.param_groups[0][COUNT] == 3


def slope(model, batch):
    x = batch[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return gradient.square().sum() + 0 * sum(p.sum() for p in model.parameters())


def slope_and_loss(model, batch):
    return slope(model, batch) + loss(model, batch)


@pytest.mark.parametrize("penalised", [slope, slope_and_loss])
def test_gradients_of_gradients(penalised):
    """The backward pass of a penalty on slopes does not come by the output, which is gone by then."""
    model, batch = mlp(), data()
    optimizer, _ = attached(model, sgd(model, lr=0.0))
    before = weights(model)
    for number in range(2):
        penalised(model, batch).backward()
        assert same(weights(model), before)
        close(gradients(model), gradients_at(model, displacement(model, number), batch, penalised), rtol=1e-11)
        optimizer.zero_grad()
    assert optimizer.param_groups[0][COUNT] == 2
    assert all(not p._backward_hooks for p in model.parameters())


def test_recorded_gradients_that_are_not_used():
    model = mlp()
    optimizer, _ = attached(model)
    before = weights(model)
    torch.autograd.grad(loss(model, data()), list(model.parameters()), create_graph=True)
    assert is_displaced(model, before)  # a graph might still need them
    optimizer.step()
    assert same(weights(model), before)
    assert all(not p._backward_hooks for p in model.parameters())


def test_a_gradient_of_the_input_alone_ends_a_graph_too():
    model = mlp()
    attached(model)
    before, x = weights(model), data()[0].requires_grad_()
    output = model(x)
    torch.autograd.grad(output.sum(), x)
    assert same(weights(model), before)
    assert all(p.grad is None for p in model.parameters())
    del output


def siamese(model, batch):
    a, b = batch[0].chunk(2)
    return (model(a) - model(b)).square().mean()


def test_two_forward_passes_before_one_backward_pass_share_the_displacement():
    model, batch = mlp(), data()
    optimizer, _ = attached(model)
    before = weights(model)
    for number in range(2):
        optimizer.zero_grad()
        siamese(model, batch).backward()
        close(gradients(model), gradients_at(model, displacement(model, number), batch, siamese))
        assert same(weights(model), before)
    assert optimizer.param_groups[0][COUNT] == 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_forward_passes_and_then_two_backward_passes(order):
    model, batch = mlp(), data()
    optimizer, _ = attached(model)
    before = weights(model)
    losses = [loss(model, batch), model(batch[0]).square().mean()]
    for i in order:
        assert is_displaced(model, before)
        losses[i].backward()
    assert same(weights(model), before)
    together = lambda m, b: loss(m, b) + m(b[0]).square().mean()  # noqa: E731
    close(gradients(model), gradients_at(model, displacement(model, 0), batch, together))
    assert optimizer.param_groups[0][COUNT] == 1


def test_a_discriminator_and_its_generator():
    """Real and fake before one step; then the generator's gradient through the displaced discriminator."""
    generator, model, (x, _) = nn.Linear(6, 6).double(), mlp(), data()
    optimizer, _ = attached(model, sgd(model, lr=0.0))
    before = weights(model)

    def adversarial(model, batch):
        return model(batch[0]).mean() - model(generator(batch[0]).detach()).mean()

    adversarial(model, (x,)).backward()
    close(gradients(model), gradients_at(model, displacement(model, 0), (x,), adversarial))
    optimizer.step()
    optimizer.zero_grad()
    model(generator(x)).mean().backward()
    u = displacement(model, 1)
    assert same(weights(model), before)
    with torch.no_grad():
        for p, offset in zip(model.parameters(), u):
            p.add_(offset)
    weight = generator.weight.grad.clone()
    generator.zero_grad()
    model.eval()(generator(x)).mean().backward()
    close([weight], [generator.weight.grad], rtol=1e-10)


class Point(NamedTuple):
    logits: torch.Tensor


@dataclasses.dataclass
class Record:
    logits: torch.Tensor


class ModelOutput(collections.OrderedDict):
    """As transformers has it."""


OUTPUTS = {
    "tensor": (lambda y: y, lambda o: o),
    "tuple": (lambda y: (None, y), lambda o: o[1]),
    "list in dict": (lambda y: {"a": [1, y]}, lambda o: o["a"][1]),
    "named tuple": (Point, lambda o: o.logits),
    "dataclass": (Record, lambda o: o.logits),
    "ModelOutput": (lambda y: ModelOutput(loss=y), lambda o: o["loss"]),
    "namespace": (lambda y: types.SimpleNamespace(deep={"y": y}), lambda o: o.deep["y"]),
    "distribution": (lambda y: distributions.Independent(distributions.Normal(y, 1.0), 1), lambda o: o.mean),
    "view": (lambda y: y.unsqueeze(0), lambda o: o[0]),
    "view written to": (lambda y: y.unsqueeze(0), lambda o: o.masked_fill_(torch.zeros(1, 1, 3).bool(), 0.0)[0]),
    "pieces": (lambda y: y.chunk(2), torch.cat),
    "written to": (lambda y: y, lambda o: o.mul_(1.0)),
}


class Returning(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.inner, self.how = mlp(), how

    def forward(self, x):
        return self.how(self.inner(x))


@pytest.mark.parametrize("name", OUTPUTS)
def test_whatever_an_output_is_made_of(name):
    pack, unpack = OUTPUTS[name]
    model, (x, y) = Returning(pack), data()
    optimizer, _ = attached(model)
    before = weights(model)
    for number in range(2):
        output = model(x)
        assert is_displaced(model, before, number)
        value = nn.functional.cross_entropy(unpack(output), y)
        assert is_displaced(model, before, number)
        value.backward()
        assert same(weights(model), before)
        close(gradients(model), gradients_at(model, displacement(model, number), (x, y), lambda m, b: loss(m.inner, b)))
        optimizer.zero_grad()
    assert optimizer.param_groups[0][COUNT] == 2
    model(x)
    assert same(weights(model), before)


@pytest.mark.parametrize("how", [lambda y: None, lambda y: y.detach(), lambda y: y.argmax(1).tolist()])
def test_an_output_without_a_graph_restores_at_once(how):
    model = Returning(how)
    optimizer, _ = attached(model)
    before = weights(model)
    output = model(data()[0])
    assert same(weights(model), before)
    assert COUNT not in optimizer.param_groups[0]
    del output


def test_a_parameter_as_output():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self):
            return self.weight

    model = Table()
    optimizer, _ = attached(model, sgd(model, lr=0.0))
    for _ in range(2):
        model().square().sum().backward()
        optimizer.step()
    assert torch.equal(model.weight.detach(), torch.ones(3))


def test_a_graph_that_is_hidden_fails_aloud_and_leaves_the_weights_clean():
    class Hiding(Returning):
        def forward(self, x):
            self.hidden = (self.inner(x),)

    model = Hiding(None)
    attached(model)
    before = weights(model)
    model(data()[0])
    assert same(weights(model), before)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model.hidden[0].sum().backward()


def test_features_used_beside_the_output_or_instead_of_it():
    """With the output at hand but unused, nothing tells that the backward pass has ended: the step restores."""
    model, (x, y) = mlp(), data()
    optimizer, _ = attached(model, sgd(model, lr=0.0))
    before, features = weights(model), []
    model[1].register_forward_hook(lambda module, _, output: features.append(output))
    (nn.functional.cross_entropy(model(x), y) + features.pop().square().mean()).backward()
    assert same(weights(model), before)
    optimizer.zero_grad()
    output = model(x)
    features.pop().square().mean().backward()
    expected = gradients_at(mlp()[:2], displacement(model, 1)[:2], (x, y), lambda m, b: m(x).square().mean())
    close([p.grad for p in model[:2].parameters()], expected)
    assert is_displaced(model, before, 1)
    optimizer.step()
    assert same(weights(model), before)
    assert optimizer.param_groups[0][COUNT] == 2
    del output


def test_calls_of_parts_are_plain_and_calls_within_calls_belong_to_the_outer_one():
    class Tree(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6).double(), nn.Linear(6, 3).double()
            self.points = []

        def forward(self, x, depth=2):
            x = torch.tanh(self.a(x))
            self.points.append(self.a.weight.detach().clone())
            if depth:
                return self(x, depth - 1)
            with torch.no_grad():
                self.teacher = None if depth is None else self.b(x)
            return self.b(x)

    model = Tree()
    optimizer, _ = attached(model)
    before = weights(model)
    model.a(data()[0]).sum().backward()
    assert same(weights(model), before)
    assert COUNT not in optimizer.param_groups[0]
    optimizer.zero_grad()
    loss(model, data()).backward()
    assert len({tuple(p.flatten().tolist()) for p in model.points}) == 1
    assert not torch.equal(model.points[0], before[0])
    assert same(weights(model), before)
    assert optimizer.param_groups[0][COUNT] == 1
    found = gradients(model)
    close(found, gradients_at(model.eval(), displacement(model, 0), data()))


def test_an_evaluation_between_forward_and_backward_sees_clean_weights_and_does_no_harm():
    """A teacher's output, or a metric: the weights come back, and then go again to where the graph needs them."""
    for number in range(2):
        model, batch = mlp(), data()
        optimizer, _ = attached(model)
        before, clean = weights(model), mlp()(data()[0]).detach()
        for _ in range(number):
            loss(model, batch).backward()
            optimizer.zero_grad()
        output = loss(model, batch)
        displaced = weights(model)
        with torch.no_grad():
            assert torch.equal(model(batch[0]), clean)
        assert same(weights(model), displaced)
        model.eval()
        with torch.inference_mode():
            assert torch.equal(model(batch[0]), clean)
        model.train()
        output.backward()
        assert same(weights(model), before)
        close(gradients(model), gradients_at(model, displacement(model, number), batch))


def test_a_teacher_within_the_forward_pass_sees_clean_weights():
    class Distilling(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.seen = mlp(), []

        def forward(self, x, teach=True):
            before = self.inner(x)
            if teach:
                with torch.no_grad():
                    self.seen.append((self(x, teach=False), self.inner[0].weight.detach().clone()))
            return before

    model = Distilling()
    attached(model)
    before = weights(model)
    loss(model, data()).backward()
    assert torch.equal(model.seen[0][0], mlp()(data()[0]))
    close(gradients(model), gradients_at(model.inner, displacement(model, 0), data()))
    assert same(weights(model), before)


@pytest.mark.loop("checkpointing", method="attach")
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_is_what_it_is_without(reentrant):
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self, checkpoints):
            super().__init__()
            self.inner, self.checkpoints = mlp(torch.float32), checkpoints

        def forward(self, x):
            first = self.inner[:2]
            x = checkpoint(first, x, use_reentrant=reentrant) if self.checkpoints else first(x)
            return self.inner[2](x)

    found = []
    for checkpoints in (False, True):
        model, (x, y) = Net(checkpoints), data(dtype=torch.float32)
        attached(model)
        before = weights(model)
        for _ in range(2):
            loss(model, (x.clone().requires_grad_(), y)).backward()
            assert same(weights(model), before)
        found.append(gradients(model))
    assert same(*found)


def test_the_whole_model_in_a_checkpoint():
    from torch.utils.checkpoint import checkpoint

    model, (x, y) = mlp(), data()
    optimizer, _ = attached(model)
    before = weights(model)
    nn.functional.cross_entropy(checkpoint(model, x, use_reentrant=False), y).backward()
    close(gradients(model), gradients_at(model, displacement(model, 0), (x, y)))
    assert same(weights(model), before)
    assert optimizer.param_groups[0][COUNT] == 1

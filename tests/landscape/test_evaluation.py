"""Many points of weight space at once: read once, the same bits in groups of any size, taken up where it stopped."""

import importlib
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from curvature_cases import case, data, everything, mlp
from flatmin.errors import DataError
from flatmin.landscape import difference, surface
from flatmin.landscape.evaluation import Points

GRID = torch.linspace(-1, 1, 5, dtype=torch.float64)


class Counting(list):
    """Batches that count how often they are read."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        return super().__iter__()


@pytest.fixture
def in_groups(monkeypatch):
    """Let groups hold so many bytes of batches."""
    module = importlib.import_module("flatmin.landscape.surface")
    return lambda memory: monkeypatch.setattr(module, "Points", partial(Points, memory=memory))


def quadratic():
    """f(w) = |X w - y|² / n with its gradient and Hessian at w, in batches of unequal size."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(7, k, generator=g, dtype=torch.float64) for k in (4, 1))
    model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    w = model.weight.detach().T
    gradient, hessian = 2 * x.T @ (x @ w - y) / 7, 2 * x.T @ x / 7
    return model, list(zip(x.split(3), y.split(3), strict=True)), gradient.squeeze(1), hessian


def test_slices_of_a_quadratic_are_its_closed_form():
    model, batches, gradient, hessian = quadratic()
    u, v = torch.eye(4, dtype=torch.float64)[:2] * torch.tensor([[2.0], [3.0]])
    rows, columns = torch.linspace(-1, 1, 3), torch.linspace(-2, 2, 5)
    plane = surface(
        model,
        functional.mse_loss,
        batches,
        coordinates=(rows, columns),
        directions=[{"weight": u.view(1, 4)}, {"weight": v.view(1, 4)}],
    )
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    middle = functional.mse_loss(model(x), y).detach()
    a, b = (axis.to(torch.float64) for axis in torch.meshgrid(rows, columns, indexing="ij"))
    steps = a[..., None] * u + b[..., None] * v
    expected = middle + steps @ gradient + ((steps @ hessian) * steps).sum(-1) / 2
    torch.testing.assert_close(plane.loss, expected, rtol=1e-12, atol=1e-13)
    assert [axis.tolist() for axis in plane.axes] == [rows.tolist(), columns.tolist()]
    assert plane.lengths == pytest.approx((2.0, 3.0))
    assert plane.coordinates is plane.axes[0]
    assert "3 x 5 points, coordinates -1 to 1 and -2 to 2" in repr(plane)


def shuffled():
    """A network that drops out, in training, on data that are shuffled anew in each pass."""
    model, loss_fn, batches = case("conv, batch-norm, dropout")
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    g = torch.Generator().manual_seed(0)
    return model.train(), loss_fn, DataLoader(TensorDataset(x, y), batch_size=2, shuffle=True, generator=g), g


@pytest.mark.parametrize("memory", [0, 200, 2**28])
def test_one_point_at_a_time_is_the_same_to_the_bit(memory, in_groups):
    model, loss_fn, loader, g = shuffled()
    state = g.get_state()
    torch.manual_seed(0)
    whole = surface(model, loss_fn, loader, coordinates=GRID, mode="current").loss
    in_groups(memory)
    for i, a in enumerate(GRID.tolist()):
        for j, b in enumerate(GRID.tolist()):
            g.set_state(state)
            torch.manual_seed(0)
            one = surface(model, loss_fn, loader, coordinates=([a], [b]), mode="current").loss
            assert torch.equal(one.view(()), whole[i, j])
    g.set_state(state)
    torch.manual_seed(0)
    assert torch.equal(surface(model, loss_fn, loader, coordinates=GRID, mode="current").loss, whole)


def test_data_are_read_once():
    model, loss_fn, batches = case("ragged")
    counting = Counting(batches)
    surface(model, loss_fn, counting, coordinates=GRID)
    assert counting.reads == 1


@pytest.mark.parametrize("memory", [0, 2**28])
def test_progress_counts_batches_over_all_points(memory, in_groups):
    in_groups(memory)
    model, loss_fn, batches = case("ragged")
    told = []
    surface(model, loss_fn, batches, coordinates=GRID, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(set(told))
    assert told[-1] == (75, 75)


def test_where_the_data_do_not_know_their_length_nor_does_the_progress():
    class Endless:
        def __iter__(self):
            return iter(data())

    told = []
    model = mlp().double()
    surface(model, functional.cross_entropy, Endless(), coordinates=GRID[:2], progress=lambda *at: told.append(at))
    assert told == [(2, None), (4, None), (6, None), (8, None)]


class Interrupting:
    """A loss that is interrupted at one of its calls."""

    def __init__(self, loss_fn, call=0):
        self.loss_fn, self.call, self.calls = loss_fn, call, 0

    def __call__(self, output, targets):
        self.calls += 1
        if self.calls == self.call:
            raise KeyboardInterrupt
        return self.loss_fn(output, targets)


@pytest.mark.parametrize(("memory", "call"), [(0, 2), (0, 40), (0, 60), (2**28, 40)])
def test_interrupted_it_goes_on_where_it_stopped(memory, call, in_groups):
    in_groups(memory)
    model, loss_fn, batches = case("ragged")
    whole, before = surface(model, loss_fn, batches, coordinates=GRID).loss, everything(model)
    store = {}
    with pytest.raises(KeyboardInterrupt):
        surface(model, Interrupting(loss_fn, call), batches, coordinates=GRID, store=store)
    assert everything(model) == before
    rest, told = Interrupting(loss_fn), []
    found = surface(model, rest, batches, coordinates=GRID, store=store, progress=lambda *at: told.append(at))
    assert torch.equal(found.loss, whole)
    assert told[-1] == (75, 75)
    assert call - 1 + rest.calls <= 75 + 3 + 3  # what was kept is not evaluated, but for the first points and one group
    again = Interrupting(loss_fn)
    assert torch.equal(surface(model, again, batches, coordinates=GRID, store=store).loss, whole)
    assert again.calls == 3


@pytest.mark.parametrize("what", ["coordinates", "directions", "weights", "first batch"])
def test_of_another_picture_nothing_is_taken(what):
    model, loss_fn, batches = case("gelu")
    store, changes = {}, {"coordinates": GRID}
    surface(model, loss_fn, batches, coordinates=GRID, store=store)
    if what == "coordinates":
        changes = {"coordinates": GRID + 1}
    elif what == "directions":
        changes["seed"] = 1
    elif what == "weights":
        model.a.bias.data.add_(1)
    else:
        batches = [(batches[0][0] + 1, batches[0][1]), batches[1]]
    found = surface(model, loss_fn, batches, store=store, **changes)
    assert torch.equal(found.loss, surface(model, loss_fn, batches, **changes).loss)


def test_data_that_go_on_otherwise_are_refused(in_groups):
    in_groups(0)
    model, loss_fn, batches = case("gelu")
    store = {}
    surface(model, loss_fn, batches, coordinates=GRID, store=store)
    batches = [batches[0], (batches[1][0] + 1, batches[1][1])]
    with pytest.raises(DataError, match=r"begin as they did.*or an empty store"):
        surface(model, loss_fn, batches, coordinates=GRID, store=store)


def test_losses_that_are_not_finite_are_known_again():
    model, _, batches = case("tanh")
    store, lines = {}, []
    for _ in range(2):
        calls = Interrupting(lambda o, _: o.sum().mul(1e3).exp() - o.sum().mul(1e3).exp())
        args = {"coordinates": [1e3, 0.0], "directions": [{"b.bias": torch.ones(3)}], "store": store}
        lines.append(surface(model, calls, batches, **args).loss)
    assert lines[0].isnan().tolist() == lines[1].isnan().tolist() == [True, False]
    assert calls.calls == 2


@pytest.mark.parametrize("call", [1, 3, 8])
def test_moved_buffers_come_back_bit_for_bit(call):
    model, loss_fn, loader, g = shuffled()
    other = case("conv, batch-norm, dropout").model
    other[1].running_mean.add_(1)
    way, before = difference(model, other), everything(model, [g])
    surface(model, loss_fn, loader, coordinates=GRID, directions=[way], mode="current")
    assert everything(model, [g]) == before
    with pytest.raises(KeyboardInterrupt):
        surface(model, Interrupting(loss_fn, call), loader, coordinates=GRID, directions=[way], mode="current")
    assert everything(model, [g]) == before

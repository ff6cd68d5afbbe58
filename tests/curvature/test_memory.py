"""What graphs hold, against what is really alive; that a budget is obeyed; that a session leaves nothing behind."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from curvature_cases import case, data, mlp
from flatmin.curvature import Hessian
from flatmin.curvature.memory import available_memory, container_memory, graph_bytes
from flatmin.curvature.operators import GGN, EmpiricalFisher, FunctionalHessian

KINDS = [Hessian, FunctionalHessian, GGN, EmpiricalFisher]


class Alive(TorchDispatchMode):
    """Knows the storages of all that was computed, and which of them are still alive."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                self.seen[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        return result

    def bytes_in(self, *without):
        gc.collect()
        ours = {t.untyped_storage().data_ptr() for t in without}
        return sum(n for at, (ref, n) in self.seen.items() if not ref.expired() and at not in ours)


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3),
        nn.SiLU(),
        nn.Flatten(),
        nn.LayerNorm(16),
        nn.Linear(16, 3),
    )


def images(sizes):
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 2, 8, 8, generator=g), torch.randint(0, 3, (n,), generator=g)) for n in sizes]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "args",
    [
        (lambda: (mlp(), functional.cross_entropy, [(x.float(), y) for x, y in data((64, 32))])),
        (lambda: (conv(), functional.cross_entropy, images((16, 7)))),
    ],
)
def test_what_is_counted_is_what_is_alive(kind, args):
    """All that a session's graphs keep alive is counted, but for numbers of a few bytes; parameters and data are not
    alive because of them."""
    model, loss_fn, batches = args()
    operator = kind(model, loss_fn, batches)
    vector = torch.ones(operator.shape[0])
    given = [*model.parameters(), *model.buffers(), *(t for batch in batches for t in batch)]
    with operator.session(), Alive() as alive:
        operator @ vector
        session = operator._session
        assert session.complete
        data_bytes = sum(t.untyped_storage().nbytes() for batch in batches for t in batch)
        held = alive.bytes_in(vector, *given)
        assert held <= session.used + 2000
        assert session.used <= held + data_bytes + 2000
        assert held > 4000


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda w: w.exp().sum(), 16 + 4),  # the result, and the root
        (lambda w: w.sin().sum(), 4),  # its own argument, a parameter
        (lambda w: (w * 2).sin().sum(), 16 + 4 + 4),  # the product, the root, the factor
        (lambda w: nn.functional.linear(torch.ones(3, 4), w[None]).sum(), 48 + 4),  # the input; the weight is a view
        (lambda w: (w.exp() + w.exp().detach()).sum(), 16 + 4),
    ],
)
def test_saved_tensors_of_small_graphs(make, expected):
    assert abs(graph_bytes([make(nn.Parameter(torch.ones(4)))]) - expected) <= 4


SPARSE = {"coo": torch.Tensor.to_sparse, "csr": torch.Tensor.to_sparse_csr, "csc": torch.Tensor.to_sparse_csc}


PARTS = {
    "coo": lambda x: (x._indices(), x._values()),
    "csr": lambda x: (x.crow_indices(), x.col_indices(), x.values()),
    "csc": lambda x: (x.ccol_indices(), x.row_indices(), x.values()),
}


class Graph(nn.Module):
    """Two layers that mix the nodes of a graph by its adjacency matrix."""

    def __init__(self, adjacency):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)
        self.register_buffer("adjacency", adjacency)

    def forward(self, x):
        return self.adjacency @ self.second((self.adjacency @ self.first(x)).tanh())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")
def test_sparse_tensors_in_a_graph(kind, layout):
    """Products through sparse matrices are those through dense ones, and what keeps them counts their numbers."""
    chain = torch.eye(8) + torch.diag(torch.ones(7), 1)
    (batch,) = data((8,), classes=2, dtype=torch.float32)
    model = Graph(chain)
    expected = kind(model, functional.cross_entropy, [batch])
    vector = torch.ones(expected.shape[0])
    model = copy.deepcopy(model)
    model.adjacency = sparse = SPARSE[layout](chain)
    operator = kind(model, functional.cross_entropy, [batch])
    with operator.session():
        for _ in range(2):
            torch.testing.assert_close(operator @ vector, expected @ vector)
        assert operator._session.complete
        assert operator._session.used > sum(part.untyped_storage().nbytes() for part in PARTS[layout](sparse))


@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")
def test_a_sparse_matrix_holds_its_numbers_and_their_places(layout):
    w = nn.Parameter(torch.ones(4, 1))
    sparse = SPARSE[layout](torch.eye(4))
    expected = sum(part.untyped_storage().nbytes() for part in PARTS[layout](sparse))
    assert expected >= 4 * 4 + 2 * 4 * 8
    assert graph_bytes([(sparse @ w).sum()]) == expected + 4


def test_looking_does_not_recompute():
    calls = []

    def layer(x):
        calls.append(1)
        return x.sin().exp()

    w = nn.Parameter(torch.ones(4))
    (g,) = torch.autograd.grad(checkpoint(layer, w, use_reentrant=False).square().sum(), w, create_graph=True)
    before = len(calls)
    graph_bytes([g])
    assert len(calls) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.6, 0.9, 1.0])
def test_the_budget_is_obeyed(kind, share):
    whole = kind(*case("ragged"))
    vector = torch.ones(whole.shape[0], dtype=torch.float64)
    with whole.session():
        expected = whole @ vector
        needed = whole._session.used
    operator = kind(*case("ragged"), memory=int(share * needed))
    with operator.session():
        for _ in range(3):
            torch.testing.assert_close(operator @ vector, expected)
            session = operator._session
            assert session.used <= share * needed
            assert session.used == sum(graph_bytes(k.product.roots) for k in session.kept)
        assert session.complete == (share == 1.0)
        assert bool(session.kept) == (share > 0)


class Witness(nn.Module):
    """Remembers what it returned, weakly."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        result = x.exp()
        self.seen.append(StorageWeakRef(result.untyped_storage()))
        return result

    def alive(self):
        return [not ref.expired() for ref in self.seen]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", [None, 0])
def test_a_session_ends_without_a_rest(kind, memory):
    model = nn.Sequential(nn.Linear(3, 4), witness := Witness(), nn.Linear(4, 3)).double()
    operator = kind(model, functional.cross_entropy, data((6, 6, 6)), memory=memory)
    vector = torch.ones(operator.shape[0], dtype=torch.float64)
    gc.disable()  # nothing may wait for the collector of cycles
    try:
        with operator.session():
            operator @ vector
            assert witness.alive() == [memory is None] * 3
            operator @ vector
        assert not any(witness.alive())
        reference = weakref.ref(operator)
        del operator
        assert reference() is None or gc.isenabled() is False
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("route", ["reverse", "forward", "differences"])
def test_one_graph_at_a_time(kind, route):
    """While a batch is evaluated, nothing of the one before is alive."""
    alive = []

    class Watching(Witness):
        def forward(self, x):
            alive.append(sum(self.alive()))
            return super().forward(x)

    model = nn.Sequential(nn.Linear(3, 4), Watching(), nn.Linear(4, 3)).double()
    operator = kind(model, functional.cross_entropy, data((6, 6, 6)), route=route)
    gc.disable()
    try:
        operator @ torch.eye(operator.shape[0], dtype=torch.float64)[:, :2]
    finally:
        gc.enable()
    assert len(alive) >= 3
    assert max(alive) == 0


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, float("inf")),
        ({"memory.max": "max", "memory.current": "5", "memory.stat": ""}, float("inf")),
        ({"memory.max": "100", "memory.current": "70", "memory.stat": "anon 50\ninactive_file 15\n"}, 45),
        (
            {
                "memory/memory.limit_in_bytes": "100\n",
                "memory/memory.usage_in_bytes": "90\n",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 20\n",
            },
            30,
        ),
    ],
    ids=["none", "no limit", "version 2", "version 1"],
)
def test_a_container_has_its_own_limit(files, expected, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert container_memory(tmp_path) == expected
    monkeypatch.setattr("flatmin.curvature.memory._CGROUPS", tmp_path)
    free = available_memory(torch.device("cpu"))
    assert isinstance(free, int)
    assert free == expected or (free > 2**20 and expected == float("inf"))


def test_a_session_in_a_session_is_the_outer_one():
    H = Hessian(*case("ragged"))
    R = H.related(FunctionalHessian)
    vector = torch.ones(H.shape[0], dtype=torch.float64)
    with H.session():
        H @ vector
        with H.session(), (H + R).session():
            H @ vector
        H @ vector
        assert H.gradients == pytest.approx(1 + 3 * 2)
    assert H._session is None
    assert R._session is None


def test_an_exception_ends_a_session():
    H = Hessian(*case("ragged"))
    with pytest.raises(KeyboardInterrupt), H.session():
        H @ torch.ones(H.shape[0], dtype=torch.float64)
        raise KeyboardInterrupt
    assert H._session is None

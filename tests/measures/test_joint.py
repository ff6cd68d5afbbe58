"""The joint measurement: the parts' own numbers, shared where they can be, kept, and taken up again."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from curvature_cases import case, dense_hessian, everything
from flatmin.curvature import Hessian, top_eigenvalues
from flatmin.errors import ArgumentError, ArgumentTypeError, DataError, NonFiniteError
from flatmin.measures import perturbation_gap
from flatmin.measures.joint import measure
from flatmin.measures.measurement import Measurement

ALONE = {"trace": False, "eigenvalues": 0, "density": False, "layers": False}


def numbers(found):
    """Everything that was measured, one number after the other.

    Not what it cost, since graphs are built again after an interruption, and not words.
    """

    def flat(record):
        if isinstance(record, dict):
            return [x for key, item in record.items() if key not in ("gradients", "spent") for x in flat(item)]
        return [x for item in record for x in flat(item)] if isinstance(record, list) else [record]

    return [x for x in flat(found.to_dict()) if isinstance(x, (int, float))]


def blocks(H, layout):
    return {name: float(H[place, place].trace()) for name, place in layout.slices.items()}


@pytest.mark.parametrize(
    "name", ["relu", "ragged", "frozen", "unused", "mappings", "tied", "conv, batch-norm, dropout"]
)
def test_every_number_is_that_of_the_hessian(name):
    model, loss_fn, batches = case(name)
    H = dense_hessian(model, loss_fn, batches)
    found = measure(model, loss_fn, batches, eigenvalues=2, rtol=0.05)
    assert abs(found.trace.value - float(H.trace())) <= 4 * found.trace.stderr + 1e-9
    exact = torch.linalg.eigvalsh(H)
    exact = exact[exact.abs().argsort(descending=True)][:2]
    assert torch.allclose(found.eigenvalues.values, exact, rtol=2e-3)
    assert sum(layer.share for layer in found.layers) == pytest.approx(1.0)
    traces = blocks(H, Hessian(model, loss_fn, batches).layout)
    for layer in found.layers:
        assert abs(layer.value - sum(traces[n] for n in layer.parameters)) <= 4.5 * layer.stderr + 1e-9, layer
    assert found.num_parameters == len(H)
    assert found.num_examples == sum(len(b["labels"] if isinstance(b, dict) else b[1]) for b in batches)


def test_what_is_piecewise_linear_is_exact_and_costs_no_probe():
    model, loss_fn, batches = case("relu")
    found = measure(model, loss_fn, batches, eigenvalues=0, density=False)
    H = dense_hessian(model, loss_fn, batches)
    assert found.trace.value == pytest.approx(float(H.trace()), rel=1e-10)
    assert (found.trace.stderr, found.trace.method, found.trace.num_matvecs) == (0.0, "exact", 0)
    assert set(found.spent) == {"layers"}  # which the trace is the sum of
    assert found.gradients < 5


def test_layers_that_are_known_well_enough_make_the_trace():
    model, loss_fn, batches = case("gelu")
    found = measure(model, loss_fn, batches, eigenvalues=0, density=False, rtol=0.5)
    assert found.trace.method == "sum of the layers"
    assert set(found.spent) == {"layers"}
    assert found.trace.value == pytest.approx(sum(layer.value for layer in found.layers))
    samples = found.trace.samples
    assert float(samples.mean()) == pytest.approx(found.trace.value)
    assert float(samples.std() / len(samples) ** 0.5) == pytest.approx(found.trace.stderr, rel=1e-6)


def test_a_krylov_space_of_the_trace_gives_the_eigenvalues_as_well():
    model, loss_fn, batches = case("tanh")
    found = measure(model, loss_fn, batches, trace={"method": "deflated"}, eigenvalues=2, density=False, layers=False)
    assert set(found.spent) == {"trace"}
    alone = top_eigenvalues(Hessian(model, loss_fn, batches), 2)
    assert torch.allclose(found.eigenvalues.values, alone.values, rtol=2e-3)
    assert found.eigenvalues.vectors.shape == alone.vectors.shape
    assert found.gradients == pytest.approx(found.trace.gradients)


@pytest.mark.parametrize("options", [{"trace": {"method": "xtrace"}}, {"max_matvecs": 3}, {"max_matvecs": 2}])
def test_eigenvalues_that_the_trace_cannot_find_are_found_by_themselves(options):
    found = measure(*case("tanh"), **options, eigenvalues=2, density=False, layers=False)
    assert set(found.spent) == {"trace", "eigenvalues"}
    assert found.eigenvalues.converged
    assert found.trace.num_matvecs <= options.get("max_matvecs", 1000)


def test_a_loss_that_is_not_curved():
    model, _, batches = case("constant gradient")
    found = measure(model, lambda out, _: out.mean(), batches, eigenvalues=2)
    assert (found.trace.value, found.num_large.value) == (0.0, 0.0)
    assert found.eigenvalues.values.tolist() == [0.0, 0.0]
    assert str(found).count("nan") == 0
    assert "no shares of a trace that is zero" in str(found)


def test_the_density_counts_known_eigenvalues_as_they_are():
    model, loss_fn, batches = case("gelu")
    found = measure(
        model, loss_fn, batches, eigenvalues=3, density={"num_probes": 20, "num_matvecs": 400}, layers=False
    )
    assert found.density.outliers.tolist() == found.eigenvalues.values.tolist()
    H = dense_hessian(model, loss_fn, batches)
    assert abs(found.density.trace.value - float(H.trace())) < 4 * found.density.trace.stderr
    values = torch.linalg.eigvalsh(H).abs()
    large = int((values > values.max() / 100).sum())
    assert abs(found.num_large.value - large) < 4 * found.num_large.stderr
    with pytest.raises(ArgumentError, match="the density was not measured"):
        _ = measure(model, loss_fn, batches, **ALONE | {"layers": True}).num_large


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [3, 5])
def test_where_the_known_eigenvalues_are_all_there_are(k, dtype):
    """Of three examples a linear regression has three: the rest of the spectrum is rounding errors, and no fault."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 50, generator=g, dtype=dtype)
    model = nn.Linear(50, 1, bias=False, dtype=dtype)
    found = measure(model, functional.mse_loss, [(x, torch.zeros(3, 1, dtype=dtype))], eigenvalues=k)
    exact = torch.linalg.eigvalsh(2 / 3 * x.double() @ x.double().T).flip(0)
    torch.testing.assert_close(found.eigenvalues.values[:3], exact, rtol=1e-3, atol=0)
    assert (found.num_large.value, found.num_large.stderr) == (3.0, 0.0)
    assert "3 ± 0 eigenvalues beyond 1 %" in str(found)
    eps = torch.finfo(dtype).eps
    assert abs(found.density.trace.value - float(exact.sum())) < 2e-3 * float(exact.sum())
    assert float(found.density.nodes.abs().max()) < 10 * eps * float(exact.sum())


def test_a_tolerance_that_cannot_be_met_is_told():
    model, loss_fn, batches = case("tanh")
    found = measure(model, loss_fn, batches, trace={"method": "hutchinson"}, rtol=1e-6, max_matvecs=40, eigenvalues=0)
    assert not found.trace.converged
    assert found.trace.num_matvecs <= 40
    assert found.trace.stderr > 1e-6 * abs(found.trace.value)


def test_the_gap_is_that_of_perturbation_gap():
    model, loss_fn, batches = case("tanh")
    found = measure(model, loss_fn, batches, **ALONE, gap=0.05, seed=3)
    alone = perturbation_gap(model, loss_fn, batches, sigma=0.05, seed=3)
    assert torch.equal(found.gap.samples, alone.samples)
    assert found.loss == pytest.approx(alone.clean_loss)
    assert found.gradients == pytest.approx(67)
    assert (found.trace, found.eigenvalues, found.density, found.layers) == (None,) * 4


def test_nothing_is_changed():
    model, loss_fn, batches = case("conv, batch-norm, dropout")
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = everything(model)
    measure(model, loss_fn, batches, eigenvalues=1, gap=0.01)
    assert everything(model) == before


class Failing(dict):
    """A store that is interrupted when something is put in for the n-th time."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def __setitem__(self, key, value):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        super().__setitem__(key, value)


SETTINGS = {"eigenvalues": 2, "gap": 0.01, "rtol": 0.02, "seed": 1}


@pytest.mark.parametrize("after", [0, 1, 3, 5, 8, 13])
def test_interrupted_anywhere_it_goes_on_and_gives_the_same_numbers(after):
    whole = measure(*case("tanh"), **SETTINGS)
    store = Failing(after)
    with pytest.raises(KeyboardInterrupt):
        measure(*case("tanh"), **SETTINGS, store=store)
    kept = dict(store)
    again = measure(*case("tanh"), **SETTINGS, store=kept)
    assert numbers(again) == pytest.approx(numbers(whole), rel=1e-6)  # differences settle on their step again
    assert again.gradients <= whole.gradients + 4
    assert all(key.split("-")[0] in ("trace", "eigenvalues", "density", "layers", "gap") for key in kept)


def test_what_is_done_is_not_done_again():
    store = {}
    first = measure(*case("tanh"), **SETTINGS, store=store)
    calls = []

    def loss_fn(output, targets):
        calls.append(1)
        return functional.cross_entropy(output, targets)

    model, _, batches = case("tanh")
    second = measure(model, loss_fn, batches, **SETTINGS, store=store)
    assert len(calls) == len(batches)  # the loss itself, by which the data are known again
    assert second.to_dict() == first.to_dict()
    assert torch.equal(second.eigenvalues.vectors, first.eigenvalues.vectors)


@pytest.mark.parametrize(
    "change",
    [
        lambda model, batches: (copy.deepcopy(model).double().requires_grad_(), batches[:1]),
        lambda model, batches: (nudged(model), batches),
    ],
    ids=["other data", "other weights"],
)
def test_nothing_is_taken_from_another_measurement(change):
    store = {}
    model, loss_fn, batches = case("tanh")
    first = measure(model, loss_fn, batches, **ALONE | {"layers": True}, store=store)
    second = measure(
        *change(model, batches)[:1], loss_fn, change(model, batches)[1], **ALONE | {"layers": True}, store=store
    )
    assert first.layers["a"].value != second.layers["a"].value


def nudged(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.a.weight[0, 0] += 1e-9
    return other


def frozen(model):
    other = copy.deepcopy(model)
    other.a.bias.requires_grad_(requires_grad=False)
    return other


def test_frozen_parameters_make_another_measurement():
    store = {}
    model, loss_fn, batches = case("tanh")
    measure(model, loss_fn, batches, **ALONE | {"layers": True}, store=store)
    found = measure(frozen(model), loss_fn, batches, **ALONE | {"layers": True}, store=store)
    assert found.layers["a"].parameters == ("a.weight",)


def test_data_of_the_same_loss_make_another_measurement():
    """A network whose last layer is zero has the loss log C, whatever the data."""
    store = {}
    model, loss_fn, batches = case("tanh")
    nn.init.zeros_(model.b.weight)
    nn.init.zeros_(model.b.bias)
    others = [(x + 1.0, y) for x, y in batches]
    first, second = (measure(model, loss_fn, b, **ALONE | {"layers": True}, store=store) for b in (batches, others))
    assert first.loss == second.loss
    assert first.layers.whole.value != second.layers.whole.value


def test_sparse_buffers_are_known_again():
    batches = [(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1]))]

    def found(edges):
        model = nn.Linear(2, 2)
        model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        model.register_buffer("edges", edges.to_sparse())
        model.register_forward_hook(lambda module, _, output: module.edges @ output)
        return measure(model, functional.cross_entropy, batches, **ALONE | {"layers": True}, store=store)

    store = {}
    found(torch.eye(4))
    assert len(store) == 1
    found(torch.eye(4))
    assert len(store) == 1
    found(torch.ones(4, 4))
    assert len(store) == 2


GARBAGE = [
    {},
    [1],
    3,
    "text",
    torch.ones(3),
    {"kind": "products"},
    {"result": {"kind": "Unknown"}, "spent": [1.0, 2.0]},
    {"result": {"kind": "EigenPairs"}, "spent": [1.0, 2.0]},
    {"result": {"kind": "Estimate", "value": 1.0, "stderr": 0.1}, "spent": [1.0, 2.0]},
    {"result": {"kind": "LayerwiseResult"}, "spent": []},
    {"kind": "products", "sketch": torch.ones(16, 1), "answer": torch.ones(2, 2), "gradients": 1.0},
    {"kind": "products", "sketch": "ab", "answer": None, "gradients": None},
]


def test_what_a_store_has_spoilt_is_done_again():
    cut, small = Failing(4), {"density": {"num_probes": 2, "num_matvecs": 8}, "eigenvalues": 2, "layers": False}
    whole = measure(*case("tanh"), **small, store=(done := {}))
    with pytest.raises(KeyboardInterrupt):
        measure(*case("tanh"), **small, store=cut)
    assert any(key.startswith("products-") for key in cut)
    for entries in (done, dict(cut)):
        for garbage in GARBAGE:
            again = measure(*case("tanh"), **small, store=dict.fromkeys(entries, garbage))
            assert numbers(again) == pytest.approx(numbers(whole))


def test_what_is_done_to_results_does_not_reach_the_store():
    store = {}
    first = measure(*case("tanh"), **SETTINGS, store=store)
    expected = first.eigenvalues.vectors.clone()
    for _ in range(2):
        found = measure(*case("tanh"), **SETTINGS, store=store)
        torch.testing.assert_close(found.eigenvalues.vectors, expected, rtol=0, atol=0)
        found.eigenvalues.vectors.zero_()
        found.density.weights.zero_()
        first.eigenvalues.vectors.zero_()


def test_more_parts_keep_those_that_are_done():
    store = {}
    measure(*case("tanh"), **ALONE | {"layers": True}, store=store)
    before = set(store)
    measure(*case("tanh"), **ALONE | {"layers": True, "eigenvalues": 1}, store=store)
    assert before < set(store)


def test_progress_goes_up_part_by_part():
    told = []
    measure(*case("tanh"), **SETTINGS, progress=lambda *news: told.append(news))
    parts = list(dict.fromkeys(part for part, _, _ in told))
    assert parts[0] == "layers"
    assert parts[-1] == "gap"
    for part in parts:
        done = [n for name, n, _ in told if name == part]
        assert done == sorted(done)
        assert done[0] == 0
        *_, (_, last, total) = [news for news in told if news[0] == part]
        assert last == total


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_json_there_and_back(name):
    found = measure(*case(name), **SETTINGS)
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = Measurement.from_dict(json.loads(text))
    assert json.dumps(again.to_dict(), allow_nan=False) == text
    assert str(again) == str(found)
    assert again.gap.trace.value == found.gap.trace.value
    assert again.layers["a"].share == found.layers["a"].share
    assert again.eigenvalues.vectors.shape == (0, 2)
    assert "vectors" not in text


def test_it_prints_as_a_table():
    found = measure(*case("relu"), **SETTINGS)
    lines = str(found).splitlines()
    assert lines[0] == f"38 parameters, 12 examples, loss {found.loss:.4g}"
    assert lines[1] == f"trace         {found.trace.value:.6g} exactly"
    assert [line.split()[0] for line in lines[1:]] == ["trace", "eigenvalues", "density", "layers", "gap"]
    assert repr(found).startswith("Measurement(38 parameters, trace, eigenvalues, ")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eigenvalues": -1}, ArgumentError, "eigenvalues is -1.*0 for none"),
        ({"eigenvalues": True}, ArgumentTypeError, "eigenvalues is True"),
        ({"rtol": 0}, ArgumentError, "rtol is 0"),
        ({"gap": -0.1}, ArgumentError, r"gap is -0\.1.*None measures no gap"),
        ({"max_matvecs": 1}, ArgumentError, "max_matvecs is 1"),
        ({"seed": -1}, ArgumentError, "seed is -1"),
        ({"trace": 0.5}, ArgumentTypeError, "trace is 0.5, but True, False, or a mapping of options"),
        ({"trace": {"metod": "xtrace"}}, ArgumentError, "option of trace is 'metod'.*mean 'method'"),
        ({"density": {"num_probe": 3}}, ArgumentError, "option of density is 'num_probe'.*mean 'num_probes'"),
        ({"layers": {"groups": "parameter"}}, ArgumentTypeError, "layers is {'groups'.*layerwise"),
        ({"progress": 3}, ArgumentTypeError, "progress is 3, but a function of"),
        ({"store": "runs"}, ArgumentTypeError, "store is a str, but a mapping"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        measure(*case("tanh"), **options)


def test_bad_input():
    model, loss_fn, batches = case("tanh")
    with pytest.raises(DataError, match="gave no batch"):
        measure(model, loss_fn, [])
    with pytest.raises(ArgumentTypeError, match="can be read only once"):
        measure(model, loss_fn, iter(batches))
    with torch.no_grad():
        model.a.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"'a\.weight' holds NaN or infinity"):
        measure(model, loss_fn, batches)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"kind": "Pickle"}, "one of 'Pickle', which is not known here"),
        ({"kind": "Measurement", "loss": 1.0}, "of a Measurement is incomplete"),
        ({"kind": "EigenPairs", "num_matvecs": 1}, "of a EigenPairs is incomplete"),
        ({"kind": "Measurement", "loss": "low"}, "has 'low' as its loss"),
        ({"kind": "Measurement", "trace": {"kind": "Estimate", "value": 1.0, "stderr": 0.0}}, "as its trace"),
        ({"kind": "LayerwiseResult", "layers": [1]}, "as its layers"),
        (
            {"kind": "Measurement", "loss": 1.0, "num_examples": 1, "num_parameters": 1, "spent": {"gap": 3}},
            "its spent",
        ),
        ({"kind": "Layout", "shapes": {}}, "not one of a Measurement"),
        ([], "not one of a Measurement"),
    ],
)
def test_what_is_no_measurement(record, message):
    with pytest.raises(DataError, match=message):
        Measurement.from_dict(record)


def test_a_function_of_parameters():
    batches = [(torch.eye(3), torch.zeros(3, 1))]
    found = measure(
        lambda p, x: x @ p["w"], nn.functional.mse_loss, batches, parameters={"w": torch.ones(3, 1)}, eigenvalues=1
    )
    assert found.trace.value == pytest.approx(2.0)

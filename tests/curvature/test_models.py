"""Models and data as they come: outputs of transformers, autocast, low precision, wrappers, loaders with workers."""

import copy
from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from curvature_cases import case, data, dense_hessian, everything, mlp
from flatmin.curvature import Hessian, top_eigenvalues, trace
from flatmin.curvature.operators import GGN, EmpiricalFisher, FunctionalHessian
from flatmin.errors import ArgumentError, ArgumentTypeError, DataError, NonFiniteError

ROUTES = ["reverse", "forward", "differences"]
KINDS = [Hessian, FunctionalHessian, GGN, EmpiricalFisher]


def eye(operator):
    return torch.eye(operator.shape[0], dtype=operator.dtype)


@dataclass
class Output(OrderedDict[str, Any]):
    """A mapping and a dataclass in one, without the entries that are None, as the outputs of transformers are."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    def __post_init__(self):
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None:
                self[field.name] = value


class Classifier(nn.Module):
    """Takes labels and returns the loss beside logits and hidden states."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.embed(input_ids)
        mixed = torch.tanh(self.mix(hidden))
        weights = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = self.head((mixed * weights[..., None]).sum(1) / weights.sum(1, keepdim=True))
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return Output(loss=loss, logits=logits, hidden_states=(hidden, mixed))


def text(sizes=(4, 3)):
    g = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(0, 7, (n, 5), generator=g),
            "attention_mask": torch.ones(n, 5, dtype=torch.long),
            "labels": torch.randint(0, 3, (n,), generator=g),
            "example_id": [f"row {i}" for i in range(n)],
        }
        for n in sizes
    ]


@pytest.fixture
def classifier():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier().double()


def of_logits(output, batch):
    return functional.cross_entropy(output.logits, batch["labels"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("route", ROUTES)
def test_outputs_of_transformers(classifier, kind, route):
    """The model's own loss, beside hidden states, is the same function as the loss of the logits."""
    whole = {key: value for key, value in text((7,))[0].items() if key != "example_id"}
    batches = text()
    whole.update({k: torch.cat([b[k] for b in batches]) for k in whole})
    pairs = [((whole["input_ids"], whole["attention_mask"]), whole["labels"])]
    expected = kind(classifier, lambda out, y: functional.cross_entropy(out.logits, y), pairs)
    expected = expected @ eye(expected)
    for loss_fn in (lambda out, batch: out.loss, of_logits):
        operator = kind(classifier, loss_fn, batches, route=route)
        assert (operator @ eye(operator) - expected).norm() < 1e-6 * expected.norm()


def test_a_model_that_returns_its_loss_alone(classifier):
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier

        def forward(self, **batch):
            batch.pop("example_id")
            return {"loss": self.inner(**batch)["loss"]}

    H, expected = Hessian(Alone(), lambda out, _: out["loss"], text()), Hessian(classifier, of_logits, text())
    torch.testing.assert_close(H @ eye(H), expected @ eye(H))
    with pytest.raises(ArgumentError, match=r"no output of the model.*return the logits too"):
        H.related(GGN) @ eye(H)


@pytest.mark.parametrize("kind", [Hessian, FunctionalHessian, GGN])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("where", ["outside", "inside"])
def test_autocast(kind, route, where):
    """Under autocast products are those of the float32 model to the precision of bf16, in float32."""
    model, loss_fn, batches = case("gelu", torch.float32)
    expected = kind(*case("gelu"), route="reverse")
    expected = (expected @ eye(expected)).float()

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.model(x).float()

    operator = kind(Inside() if where == "inside" else model, loss_fn, batches, route=route)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=where == "outside"):
        operator.risk_mean = float(loss_fn(model(batches[0][0]), batches[0][1]).detach())  # fills autocast's cache
        with torch.no_grad():
            model(batches[0][0])
        with operator.session():
            products = [operator @ eye(operator) for _ in range(2)]
    assert products[0].dtype == torch.float32
    for product in products:
        assert (product - expected).norm() < (0.3 if route == "differences" else 0.05) * expected.norm()
    again = model(batches[0][0]).sum()
    again.backward()
    assert model.a.weight.grad is not None


@pytest.mark.parametrize("kind", [Hessian, GGN])
@pytest.mark.parametrize("route", ["reverse", "forward"])
def test_models_in_bf16(kind, route):
    operator, expected = kind(*case("tanh", torch.bfloat16), route=route), kind(*case("tanh"))
    product = operator @ eye(operator)
    assert product.dtype == torch.float32
    assert (product - expected @ eye(expected)).norm() < 0.1 * product.norm()


def test_sums_over_batches_are_taken_in_float32():
    """100 batches of bf16: the sum is not stuck where bf16 would be."""
    model = nn.Linear(1, 1, bias=False).bfloat16()
    batches = [(torch.ones(1, 1).bfloat16(), torch.zeros(1, 1).bfloat16())] * 1000
    H = Hessian(model, functional.mse_loss, batches)
    torch.testing.assert_close(H @ torch.ones(1), torch.full((1,), 2.0))


def test_a_distributed_wrapper_is_taken_off():
    model, loss_fn, batches = case("tanh")
    if not torch.distributed.is_available():
        pytest.skip("needs torch.distributed")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        H = Hessian(wrapped, loss_fn, batches)
        torch.testing.assert_close(H @ eye(H), Hessian(model, loss_fn, batches) @ eye(H))
        compiled = Hessian(torch.compile(wrapped, backend="eager"), loss_fn, batches)
        assert torch.equal(compiled @ eye(H), H @ eye(H))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("route", ROUTES)
def test_batch_norm_in_training_mode_sees_the_batch(route):
    model, loss_fn, batches = case("conv, batch-norm, dropout")
    model[3].p = 0.0
    model.train()
    H = Hessian(model, loss_fn, batches, mode="current", route=route)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    twin = copy.deepcopy(model)
    twin[1] = nn.BatchNorm2d(2, track_running_stats=False).double()
    twin.load_state_dict(model.state_dict(), strict=False)
    expected = dense_hessian(twin, loss_fn, batches)
    before = everything(model)
    product = H @ eye(H)
    assert everything(model) == before
    assert (product - expected).norm() < 1e-5 * expected.norm()
    assert len(weights) == 6


def test_a_loader_with_workers():
    model, loss_fn, batches = case("ragged")
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=7, num_workers=1, shuffle=True)
    H = Hessian(model, loss_fn, loader)
    expected = dense_hessian(model, loss_fn, batches)
    vector = torch.ones(len(expected), dtype=torch.float64)
    torch.testing.assert_close(H @ vector, expected @ vector)


class Changing:
    """Re-iterable, and another each time from the second reading on."""

    def __init__(self, change):
        self.change, self.readings = change, 0

    def __iter__(self):
        batches = data((6, 6, 6))
        self.readings += 1
        return iter(batches if self.readings == 1 else self.change(batches))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:2], "18 examples in the first pass and 12"),
        (lambda b: [b[0], b[1], (3 * b[2][0], b[2][1])], r"the data changed.*without the batches.*list\(loader\)"),
        (lambda b: b[::-1], r"the data changed.*without the batches.*list\(loader\)"),
    ],
)
def test_data_that_change_during_a_session(change, message):
    """Some graphs are kept, and the other batches read again: they must be the same, and in the same order."""
    whole = Hessian(mlp().double(), functional.cross_entropy, data((6, 6, 6)))
    with whole.session():
        whole @ eye(whole)
        budget = whole._session.used // 2
    H = Hessian(mlp().double(), functional.cross_entropy, Changing(change), memory=budget)
    with H.session():
        H @ eye(H)
        assert len(H._session.kept) == 1
        with pytest.raises(DataError, match=message):
            H @ eye(H)


def test_order_is_free_where_no_graph_is_kept():
    H = Hessian(mlp().double(), functional.cross_entropy, Changing(lambda b: b[::-1]))
    torch.testing.assert_close(H @ eye(H), H @ eye(H))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("measure", [trace, top_eigenvalues, lambda H: H @ eye(H)])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batches": []}, DataError, "no batch.*empty split"),
        ({"loss_fn": lambda z, _: z.mean() * float("nan")}, NonFiniteError, "loss of batch 0 is nan.*data"),
        ({"loss_fn": lambda z, _: z}, ArgumentTypeError, r"shape \(6, 3\), but one number"),
        ({"loss_fn": lambda z, _: z.detach().sum()}, ArgumentTypeError, "no trainable parameter.*detach"),
    ],
)
def test_messages_by_every_route(route, measure, changes, error, message):
    args = {"model": mlp().double(), "loss_fn": functional.cross_entropy, "batches": data()} | changes
    with pytest.raises(error, match=message):
        measure(Hessian(*args.values(), route=route))


@pytest.mark.filterwarnings("ignore")  # of the library, about itself and torch
def test_models_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=13, n_positions=8, n_embd=8, n_layer=1, n_head=2, attn_pdrop=0.1, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).double()  # its attention is "sdpa"
        ids = torch.randint(0, 13, (3, 8))
    batches = [{"input_ids": ids, "labels": ids}]
    H = Hessian(model, lambda out, _: out.loss, batches)
    vector = torch.randn(H.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = H @ vector
    assert H.route.startswith("reverse")
    for route in ("forward", "differences"):
        other = Hessian(model, lambda out, _: out.loss, batches, route=route)
        assert (other @ vector - expected).norm() < 1e-4 * expected.norm()  # the loss itself is in float32
    torch.testing.assert_close(
        (H.related(GGN) @ vector) + (H.related(FunctionalHessian) @ vector), expected, rtol=1e-7, atol=1e-9
    )
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    torch.testing.assert_close(Hessian(eager, lambda out, _: out.loss, batches) @ vector, expected)
    model.gradient_checkpointing_enable()
    model.train()
    model.transformer.drop.p = 0.0
    saving = Hessian(model, lambda out, _: out.loss, batches, mode="current")
    with saving.session():
        torch.testing.assert_close(saving @ vector, saving @ vector)

"""Small networks whose Hessian is known in full, and what a measurement must leave as it was."""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel


class Case(NamedTuple):
    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    batches: list[Any]


def data(sizes=(6, 6), features=3, classes=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(5)
    return [
        (torch.randn(n, features, generator=g, dtype=dtype), torch.randint(0, classes, (n,), generator=g))
        for n in sizes
    ]


class Tied(nn.Module):
    """One weight matrix, used twice."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.outer = nn.Linear(4, 4, bias=False)
        self.again = nn.Linear(4, 4, bias=False)
        self.again.weight = self.outer.weight

    def forward(self, x):
        return self.again(torch.tanh(self.outer(torch.tanh(self.inner(x)))))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(2, 6)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).mean(dim=(1, 2))


class Named(nn.Module):
    """Takes its inputs by name, as the models of transformers do."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4, bias=False)

    def forward(self, left, right=None):
        out = torch.tanh(self.first(left))
        return {"logits": out if right is None else out * self.second(right)}


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return self.linear(x) * self.temperature.exp()


def mlp(act=nn.Tanh, **named: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(a=nn.Linear(3, 5), act=act(), b=nn.Linear(5, 3), **named))


def _frozen() -> Case:
    model = mlp()
    model.a.weight.requires_grad_(requires_grad=False)
    model.b.bias.requires_grad_(requires_grad=False)
    return Case(model, functional.cross_entropy, data())


def _unused() -> Case:
    model = mlp()
    model.register_parameter("unused", nn.Parameter(torch.ones(4)))
    return Case(model, functional.cross_entropy, data())


def _named() -> Case:
    g = torch.Generator().manual_seed(2)
    batches = [
        {
            "left": torch.randn(n, 3, generator=g, dtype=torch.float64),
            "right": torch.randn(n, 3, generator=g, dtype=torch.float64),
            "labels": torch.randint(0, 4, (n,), generator=g),
        }
        for n in (4, 3)
    ]
    return Case(Named(), lambda out, batch: functional.cross_entropy(out["logits"], batch["labels"]), batches)


def _conv() -> Case:
    g = torch.Generator().manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.GELU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 3)
    )
    model[1].running_mean.fill_(0.3)
    model[1].running_var.fill_(2.0)
    batches = [(torch.randn(n, 1, 3, 3, generator=g, dtype=torch.float64), torch.arange(n) % 3) for n in (4, 2)]
    return Case(model, functional.cross_entropy, batches)


def _regression() -> Case:
    batches = [(x, x @ torch.ones(3, 3, dtype=torch.float64)) for x, _ in data()]
    return Case(mlp(nn.Softplus), functional.mse_loss, batches)


CASES: dict[str, Callable[[], Case]] = {
    "tanh": lambda: Case(mlp(), functional.cross_entropy, data()),
    "gelu": lambda: Case(mlp(nn.GELU), functional.cross_entropy, data()),
    "relu": lambda: Case(mlp(nn.ReLU), functional.cross_entropy, data()),
    "ragged": lambda: Case(mlp(), functional.cross_entropy, data(sizes=(7, 7, 2))),
    "regression": _regression,
    "conv, batch-norm, dropout": _conv,
    "tied": lambda: Case(Tied(), functional.cross_entropy, data()),
    "frozen": _frozen,
    "unused": _unused,
    "mappings": _named,
    "attention": lambda: Case(
        Attention(),
        functional.mse_loss,
        [(torch.randn(3, 4, 2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64))],
    ),
    "scalar parameter": lambda: Case(Scalar(), functional.cross_entropy, data()),
    "constant gradient": lambda: Case(nn.Linear(3, 3), lambda out, _: out.mean(), data()),
}


def case(name: str, dtype: torch.dtype = torch.float64) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, loss_fn, batches = CASES[name]()
    return Case(model.to(dtype), loss_fn, [_cast(batch, dtype) for batch in batches])


def _cast(value, dtype):
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)
    return value.to(dtype) if value.is_floating_point() else value


def mean_loss(model, loss_fn, batches, weights: dict[str, Tensor]) -> Tensor:
    """f as a pure function, written on its own: the sum over examples by their number."""
    total, count = torch.zeros(()), 0
    for batch in batches:
        if isinstance(batch, dict):
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            loss, size = loss_fn(torch.func.functional_call(model, weights, (), inputs), batch), len(batch["labels"])
        else:
            loss, size = loss_fn(torch.func.functional_call(model, weights, (batch[0],)), batch[1]), len(batch[1])
        total, count = total + size * loss, count + size
    return total / count


def dense_hessian(model, loss_fn, batches) -> Tensor:
    """The whole matrix, by torch's own functional Hessian of a flat vector, in evaluation mode."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    trainable = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in trainable.values()]

    def f(flat: Tensor) -> Tensor:
        parts = zip(trainable.items(), flat.split(sizes), strict=True)
        return mean_loss(model, loss_fn, batches, {name: part.view(p.shape) for (name, p), part in parts})

    flat = torch.cat([p.reshape(-1) for p in trainable.values()])
    with sdpa_kernel(SDPBackend.MATH):
        matrix = torch.autograd.functional.hessian(f, flat)
    for module, mode in modes:
        module.training = mode
    assert isinstance(matrix, Tensor)
    return matrix


def everything(model: nn.Module, loaders: Iterable[torch.Generator] = ()) -> dict[str, Any]:
    """All that a measurement could disturb: values as bytes, identities, flags and random states."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "weights": {n: (id(p), p.data_ptr(), _bits(p), p.requires_grad) for n, p in model.named_parameters()},
        "grads": {n: None if p.grad is None else (id(p.grad), _bits(p.grad)) for n, p in model.named_parameters()},
        "buffers": {n: (id(b), _bits(b)) for n, b in model.named_buffers()},
        "modes": [m.training for m in model.modules()],
        "torch": _bits(torch.get_rng_state()),
        "numpy": (name, keys.tobytes(), position, has_gauss, cached),
        "python": random.getstate(),
        "loaders": [_bits(g.get_state()) for g in loaders],
        "grad mode": torch.is_grad_enabled(),
    }


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()

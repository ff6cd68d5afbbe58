"""The networks whose curvature is measured: each trained here, the same at every call, and kept in a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flatmin_lab.data.cifar import cifar10_jpeg75
from flatmin_lab.data.text import mrpc
from flatmin_lab.models.resnet_cifar import ResNetCifar

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """A trained network with the batch of examples that its loss is averaged over.

    Attributes:
        name: Its name in files.
        title: Its name on the page.
        model: The network, in evaluation mode.
        batch: All the data, as one batch: every peer's cheapest route wants that.
        piecewise: Whether the network is linear in each weight tensor almost everywhere, so that tr H = tr GGN.
    """

    name: str
    title: str
    model: nn.Module
    batch: Batch
    piecewise: bool

    @property
    def batches(self) -> list[Batch]:
        """The data as a list of batches."""
        return [self.batch]

    @property
    def loss_fn(self) -> nn.Module:
        """The loss."""
        return nn.CrossEntropyLoss()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def dimension(self) -> int:
        """The number of trainable parameters."""
        return sum(p.numel() for p in self.parameters)

    def loss(self) -> Tensor:
        """Return the loss, with its graph."""
        return self.loss_fn(self.model(self.batch[0]), self.batch[1])


class Logits(nn.Module):
    """A model of transformers that returns its logits alone, classes second, as the peers want them.

    Args:
        model: The model.
        shifted: Whether outputs predict the next input, so that the last has no target.
    """

    def __init__(self, model: nn.Module, *, shifted: bool = False) -> None:
        super().__init__()
        self.model = model
        self.shifted = shifted

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (n, classes), or (n, classes, length - 1)."""
        logits = self.model(inputs).logits
        return logits[:, :-1].transpose(1, 2) if self.shifted else logits


def problem(name: str, data: Path | None, cache: Path) -> Problem:
    """Return a problem: read from ``cache``, or made and stored there.

    Args:
        name: One of :data:`PROBLEMS`.
        data: Folder of the images, the text and the weights; the digits need none.
        cache: Folder for what was trained.
    """
    title, piecewise, architecture, make = _RECIPES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = architecture()
        file = cache / f"{name}.pt"
        if not file.exists():
            batch = make(model, data)
            cache.mkdir(parents=True, exist_ok=True)
            torch.save({"model": model.state_dict(), "batch": batch}, file)
    stored = torch.load(file, weights_only=True)
    model.load_state_dict(stored["model"])
    return Problem(name, title, model.eval(), tuple(stored["batch"]), piecewise)


def _digits_network(activation: Callable[[], nn.Module]) -> nn.Module:
    sizes = (64, 32, 32, 10)
    layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), activation())]
    return nn.Sequential(*layers[:-1])


def _digits(model: nn.Module, data: Path | None) -> Batch:
    """Train on all 1,797 digits: 1,500 full-batch steps of Adam with a little weight decay, down to rate 0."""
    del data
    from sklearn.datasets import load_digits  # noqa: PLC0415

    images, labels = load_digits(return_X_y=True)
    batch = torch.from_numpy(images).float() / 16, torch.from_numpy(labels).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-4)
    _train(model, lambda _: batch, optimizer, steps=1500)
    return batch


def _images(data: Path | None, count: int) -> Batch:
    """Draw training images of cifar10-jpeg75, the same always."""
    choose = lambda n: torch.randperm(n, generator=torch.Generator().manual_seed(0))[:count]  # noqa: E731
    split = cifar10_jpeg75(_required(data), choose, test=False)
    return split.inputs, split.targets


def _resnet20(model: nn.Module, data: Path | None) -> Batch:
    """Load the published weights, which were trained on the original images."""
    from safetensors.torch import load_file  # noqa: PLC0415

    stored = load_file(_required(data) / "resnet20_cifar10.safetensors")
    missing, unexpected = model.load_state_dict(stored, strict=False)
    if unexpected or [name for name in missing if "num_batches_tracked" not in name]:
        raise ValueError(f"the weights do not fit: {missing} are missing, {unexpected} unknown. Name another --data.")
    return _images(data, 512)


def _resnet18_network() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification  # noqa: PLC0415

    widths = [64, 128, 256, 512]
    config = ResNetConfig(
        embedding_size=64, hidden_sizes=widths, depths=[2, 2, 2, 2], layer_type="basic", num_labels=10
    )
    return Logits(ResNetForImageClassification(config))


def _resnet18(model: nn.Module, data: Path | None) -> Batch:
    """Train from scratch for 40 steps of 64 on 512 images; measured on 128 of them."""
    images, labels = _images(data, 512)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    _train(model.train(), _drawn((images, labels), 64), optimizer, steps=40)
    return images[:128], labels[:128]


def _gpt2_network() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415

    config = GPT2Config(
        vocab_size=256, n_positions=64, n_embd=256, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    return Logits(GPT2LMHeadModel(config), shifted=True)


def _gpt2(model: nn.Module, data: Path | None) -> Batch:
    """Train on news sentences, byte by byte: 300 steps of 16 passages of 64 bytes; measured on 16 others."""
    pairs = mrpc(_required(data), test=False)
    text = torch.frombuffer(bytearray("\n".join(pairs.first).encode()), dtype=torch.uint8).long()
    passages = text[: len(text) // 64 * 64].view(-1, 64)
    measured, passages = passages[:16], passages[16:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    _train(model.train(), _drawn((passages, passages[:, 1:]), 16), optimizer, steps=300)
    return measured, measured[:, 1:]


def _drawn(data: Batch, size: int) -> Callable[[int], Batch]:
    """Return what draws the batch of a step."""

    def batch(step: int) -> Batch:
        chosen = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(step))[:size]
        return data[0][chosen], data[1][chosen]

    return batch


def _train(model: nn.Module, batch: Callable[[int], Batch], optimizer: Any, steps: int) -> None:
    """Train with a rate that falls to zero along a cosine."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        schedule.step()


def _required(data: Path | None) -> Path:
    if data is None:
        raise ValueError("this problem is made of data that are not part of flatmin. Name their folder: --data FOLDER.")
    return data


_RECIPES: dict[str, tuple[str, bool, Callable[[], nn.Module], Callable[[nn.Module, Path | None], Batch]]] = {
    "digits-relu": ("digits, ReLU", True, lambda: _digits_network(nn.ReLU), _digits),
    "digits-tanh": ("digits, tanh", False, lambda: _digits_network(nn.Tanh), _digits),
    "resnet20": ("ResNet-20", True, lambda: ResNetCifar(3), _resnet20),
    "resnet18": ("ResNet-18", True, _resnet18_network, _resnet18),
    "gpt2": ("GPT-2, two layers", False, _gpt2_network, _gpt2),
}

PROBLEMS = tuple(_RECIPES)

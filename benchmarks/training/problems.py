"""The networks that are trained, with made-up data: what a step costs does not depend on what is learnt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]


class Logits(nn.Module):
    """A model of transformers that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, classes last."""
        return self.model(inputs).logits


@dataclass(frozen=True)
class Problem:
    """A network and the shape of its batches.

    Attributes:
        title: Its name on the page.
        architecture: Makes the network.
        batch: Makes a batch (inputs, targets).
        devices: Kinds of devices that it is measured on.
    """

    title: str
    architecture: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    devices: tuple[str, ...]


class Instance:
    """A network of its own on a device, with one batch.

    Args:
        problem: What to make.
        device: Where; on a CUDA device forward passes run under bf16 autocast.
        compiled: Whether to compile the network with CUDA graphs.

    Attributes:
        forward: What a forward pass calls: the network, or something around it.
    """

    def __init__(self, problem: Problem, device: torch.device, *, compiled: bool = False) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, batch = problem.architecture(), problem.batch()
        self.device = device
        self.model = model.to(device).train()
        self.batch: Batch = (batch[0].to(device), batch[1].to(device))
        self._is_compiled = compiled
        self.forward: Callable[[Tensor], Tensor] = self.model
        if compiled:
            self.forward = torch.compile(self.model, mode="reduce-overhead")

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def sgd(self) -> torch.optim.SGD:
        """Return the base optimizer of every method."""
        return torch.optim.SGD(self.model.parameters(), lr=1e-5, momentum=0.9)

    def loss(self) -> Tensor:
        """Return the loss, with its graph."""
        if self._is_compiled:
            torch.compiler.cudagraph_mark_step_begin()
        inputs, targets = self.batch
        with self._autocast():
            logits = self.forward(inputs)
            return functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())

    def backward(self) -> None:
        """Run forward and backward once."""
        self.loss().backward()

    def ideal(self, passes: int) -> Callable[[], None]:
        """Return the limit of a step: so many forward and backward passes at the weights, and one step of the base."""
        base = self.sgd()

        def step() -> None:
            base.zero_grad()
            for _ in range(passes):
                self.backward()
            base.step()

        return step

    def wait(self) -> None:
        """Wait until the device has done what it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()


def _resnet(depths: list[int]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from transformers import ResNetConfig, ResNetForImageClassification  # noqa: PLC0415

        config = ResNetConfig(
            layer_type="basic", embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=depths, num_labels=10
        )
        return Logits(ResNetForImageClassification(config))

    return make


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification  # noqa: PLC0415

    return Logits(ViTForImageClassification(ViTConfig(num_labels=10)))


def _gpt2(**sizes: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415

        config = GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
        return Logits(GPT2LMHeadModel(config))

    return make


def _layers(number: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(number)))


def _images(number: int, pixels: int) -> Callable[[], Batch]:
    return lambda: (torch.randn(number, 3, pixels, pixels), torch.randint(10, (number,)))


def _tokens(number: int, length: int) -> Callable[[], Batch]:
    return lambda: (torch.randint(50257, (number, length)), torch.randint(50257, (number, length)))


def layers(number: int) -> Problem:
    """Return a network of so many linear layers of 1.05 million parameters each, and a batch of eight."""
    return Problem(
        f"{number} layers", _layers(number), lambda: (torch.randn(8, 1024), torch.randint(1024, (8,))), ("cpu", "cuda")
    )


PROBLEMS: dict[str, Problem] = {
    "resnet18": Problem("ResNet-18, 32 pixels, batch 32", _resnet([2, 2, 2, 2]), _images(32, 32), ("cpu",)),
    "gpt2-two-layers": Problem(
        "GPT-2 with two layers, 8 x 128 tokens", _gpt2(n_layer=2, n_embd=312, n_head=6), _tokens(8, 128), ("cpu",)
    ),
    "resnet34": Problem("ResNet-34, 224 pixels, batch 32", _resnet([3, 4, 6, 3]), _images(32, 224), ("cuda",)),
    "vit-base": Problem("ViT-B/16, 224 pixels, batch 32", _vit, _images(32, 224), ("cuda",)),
    "gpt2": Problem("GPT-2, 8 x 512 tokens", _gpt2(), _tokens(8, 512), ("cuda",)),
}

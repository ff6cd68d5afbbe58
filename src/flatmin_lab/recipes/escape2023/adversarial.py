"""Starts that fit the training data and generalize badly: networks that have learned random labels first.

- Liu, Papailiopoulos, Achlioptas. Bad global minima exist and SGD can reach them. arXiv:1906.02613, section 3.
- Damian, Ma, Lee. Label noise SGD provably prefers flat global minimizers. arXiv:2106.06530, section 6 and its code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from flatmin_lab.data.splits import Split, outputs, parts
from flatmin_lab.errors import LabError
from flatmin_lab.seeds import derive, generator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flatmin_lab.recipes.outcome import Watch

_NEARLY = 0.95  # of an epoch's examples right while it trains, before all are asked again at the weights of its end
_AT_ONCE = 1000  # examples in a forward pass without gradients


@dataclass(frozen=True)
class Fit:
    """SGD at a constant learning rate until the examples are fitted.

    Attributes:
        learning_rate: Of SGD.
        momentum: Of SGD.
        batch_size: Examples behind one gradient.
        max_epochs: After which it has failed.
        share: Of the examples that must be right at the end.
    """

    learning_rate: float
    momentum: float
    batch_size: int
    max_epochs: int
    share: float = 1.0


@dataclass(frozen=True)
class Misleading:
    """How a start is made that generalizes badly.

    Attributes:
        copies: Of the training inputs, each copy with random labels and zeroed pixels of its own.
        zeroed: Share of the pixels that are zeroed.
        random: How the copies are fitted.
        true: How the training data with their own labels are fitted from there.
    """

    copies: int
    zeroed: float
    random: Fit
    true: Fit


@dataclass(frozen=True)
class Fitted:
    """What a fit took.

    Attributes:
        epochs: Passes over the examples.
        gradients: Gradients of batches.
        share: Of the examples that are right at the end.
    """

    epochs: int
    gradients: int
    share: float


class Misled:
    """Copies of inputs with random labels, and a share of the pixels of each zeroed, in all channels.

    Args:
        split: The inputs, (n, features) or (n, channels, height, width), standardised: zero is grey.
        classes: Labels are drawn from so many, the true one among them.
        how: How many copies, and how many pixels.
        seed: Of labels and pixels.
    """

    def __init__(self, split: Split, classes: int, how: Misleading, seed: int) -> None:
        (self._inputs,) = parts(split.inputs)
        features = self._inputs.shape[1:]
        shape = (how.copies * len(split), *(features if len(features) == 1 else (1, *features[1:])))
        pixels, labels = generator(seed, "misled: pixels"), generator(seed, "misled: labels")
        self._kept = (torch.rand(shape, generator=pixels) >= how.zeroed).to(self._inputs.device)
        self.targets = torch.randint(classes, shape[:1], generator=labels).to(self._inputs.device)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, chosen: Tensor) -> Split:
        """The examples with these numbers, of which those of one input are n apart."""
        return Split(self._inputs[chosen % len(self._inputs)] * self._kept[chosen], self.targets[chosen])


def drawn(network: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a network with first weights of a seed, leaving torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initial weights"))
        return network()


def mislead(
    model: nn.Module, split: Split, classes: int, how: Misleading, *, seed: int, watch: Watch
) -> tuple[Fitted, Fitted]:
    """Fit random labels, then the true ones, in place.

    Args:
        model: A fresh network.
        split: The training data.
        classes: How many there are.
        how: The recipe.
        seed: Of random labels, zeroed pixels and the order of batches.
        watch: Told of the progress.

    Returns:
        What the random labels took, and what the true ones.

    Raises:
        LabError: One of the two was not fitted.
    """
    misled = Misled(split, classes, how, seed)
    first = fit(model, misled, how.random, seed=seed, what="random labels", watch=watch)
    return first, fit(model, split, how.true, seed=seed, what="true labels", watch=watch)


def fit(model: nn.Module, examples: Split | Misled, how: Fit, *, seed: int, what: str, watch: Watch) -> Fitted:
    """Train until the examples are fitted, in place.

    Args:
        model: The network.
        examples: To fit.
        how: Learning rate, momentum and the end.
        seed: Of the order of batches.
        what: For the progress, and for the order of batches.
        watch: Told of the progress.

    Raises:
        LabError: They are not fitted after ``how.max_epochs``; the message says how far it came.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=how.learning_rate, momentum=how.momentum)
    source, gradients, found = generator(seed, f"{what}: batch order"), 0, 0.0
    for epoch in range(1, how.max_epochs + 1):
        watch(what, epoch - 1, how.max_epochs)
        hits = torch.zeros((), device=examples.targets.device)
        for chosen in torch.randperm(len(examples), generator=source).to(hits.device).split(how.batch_size):
            batch = examples[chosen]
            logits = outputs(model, batch.inputs)
            optimizer.zero_grad()
            functional.cross_entropy(logits, batch.targets).backward()
            optimizer.step()
            hits += (logits.detach().argmax(1) == batch.targets).sum()
            gradients += 1
        found = float(hits) / len(examples)
        if found < min(_NEARLY, how.share):
            continue
        found = accuracy(model, examples)
        if found >= how.share:
            watch(what, how.max_epochs, how.max_epochs)
            return Fitted(epoch, gradients, found)
    raise LabError(
        f"{what}: after {how.max_epochs} epochs {found:.1%} of {len(examples):,} examples are right, where "
        f"{how.share:.1%} were to be. Likely cause: the network is too small for them, or the learning rate "
        f"{how.learning_rate:g} too large. Take a wider network, fewer copies, or another learning rate."
    )


@torch.no_grad()
def accuracy(model: nn.Module, examples: Split | Misled) -> float:
    """Return the share of examples that a network without running statistics has right."""
    numbers = torch.arange(len(examples), device=examples.targets.device).split(_AT_ONCE)
    pieces = (examples[chosen] for chosen in numbers)
    return sum(int((outputs(model, p.inputs).argmax(1) == p.targets).sum()) for p in pieces) / len(examples)

"""The sizes of Figure 3: data, network, start, radii and steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from flatmin.checks import choice
from flatmin_lab.data.splits import Split, Splits, changed
from flatmin_lab.errors import LabError
from flatmin_lab.recipes.escape2023.adversarial import Fit, Misleading

if TYPE_CHECKING:
    from torch import nn

CLASSES = 10
LEARNING_RATE = 0.001
"""The paper's, constant."""


@dataclass(frozen=True)
class Way:
    """A method with a batch size.

    Attributes:
        method: ``"SGD"``, ``"RS"`` or ``"SA"``.
        batch_size: Examples behind one gradient.
        radii: Tried for ρ; none for SGD.
    """

    method: str
    batch_size: int
    radii: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.method}, batch {self.batch_size}"


@dataclass(frozen=True)
class Scale:
    """One size.

    Attributes:
        task: What the walks are on, in one line.
        load: Splits by seed.
        network: Fresh weights from torch's global generator.
        shape: What tells the network from those of other sizes.
        misleading: How the start is made.
        fresh: How a network from fresh weights is fitted, to compare with.
        ways: The walks.
        num_steps: Of each walk.
        seeds: Paired seeds of the final walks.
        tuning_seeds: The first of them, with which radii are chosen.
        looks: At a walk after its start.
        traces: At how many of these the trace is measured.
        measured: Training examples behind the trace.
        num_matvecs: Random vectors behind it.
        device: Where.
        needs: Says what is missing here.
    """

    task: str
    load: Callable[[int], Splits]
    network: Callable[[], nn.Module]
    shape: str
    misleading: Misleading
    fresh: Fit
    ways: tuple[Way, ...]
    num_steps: int
    seeds: int
    tuning_seeds: int
    looks: int
    traces: int
    measured: int
    num_matvecs: int
    device: str = "cpu"
    needs: Callable[[], object] = lambda: None

    def recipe(self) -> dict[str, Any]:
        """What decides the start, as JSON has it."""
        return {"shape": self.shape, "misleading": asdict(self.misleading), "fresh": asdict(self.fresh)}


def ways(*, rs: tuple[float, ...], sa: tuple[float, ...], batches: tuple[int, int, int]) -> tuple[Way, ...]:
    """The paper's walks, with as many radii for both methods, and SGD beside the largest and the smallest batch."""
    small, middle, large = batches
    return (
        Way("SGD", large),
        Way("RS", large, rs),
        Way("SA", large, sa),
        Way("SA", middle, sa),
        Way("SA", small, sa),
        Way("SGD", small),
    )


def require(size: str) -> Scale:
    """Say what a size lacks here, before anything starts.

    Returns:
        The size.

    Raises:
        ArgumentError: There is no such size.
        DataError: Its data are not there.
        LabError: There is no GPU for ``"paper"``.
    """
    scale = SIZES[choice("size", size, SIZES)]()
    scale.needs()
    return scale


def _toy() -> Scale:
    from flatmin_lab.data.digits import digits_clean
    from flatmin_lab.models.small import small_fcn

    return Scale(
        task="200 of scikit-learn's digits, a perceptron with two hidden layers of 128",
        load=digits_clean,
        network=lambda: small_fcn(64, width=128),
        shape="small_fcn, 64 pixels, width 128",
        misleading=Misleading(3, 0.1, Fit(0.03, 0.9, 50, 200), Fit(0.05, 0.0, 50, 200)),
        fresh=Fit(0.05, 0.9, 50, 200),
        ways=ways(rs=(2.0, 8.0), sa=(0.2, 0.5), batches=(1, 64, 128)),
        num_steps=30,
        seeds=2,
        tuning_seeds=1,
        looks=4,
        traces=2,
        measured=200,
        num_matvecs=10,
    )


def _small() -> Scale:
    from flatmin_lab.data.cifar import FILE, drawn_splits
    from flatmin_lab.data.root import data_root, file_of
    from flatmin_lab.models.resnet_gn import ResNetGN

    def load(seed: int) -> Splits:
        splits = drawn_splits(seed)
        return Splits(*(_halved(s) for s in (splits.train, splits.validation, splits.test)))

    return Scale(
        task="2,000 images of cifar10-jpeg75 at 16 pixels, ResNet-18 GN of width 8",
        load=load,
        network=lambda: ResNetGN(width=8, in_group=8),
        shape="ResNetGN, width 8, 8 in a group, 16 pixels",
        misleading=Misleading(2, 0.1, Fit(0.05, 0.9, 128, 300), Fit(0.05, 0.0, 128, 300)),
        fresh=Fit(0.05, 0.9, 128, 200),
        ways=ways(rs=(2.0, 8.0, 32.0), sa=(0.125, 0.5, 2.0), batches=(1, 64, 128)),
        num_steps=1000,
        seeds=3,
        tuning_seeds=1,
        looks=10,
        traces=2,
        measured=250,
        num_matvecs=10,
        needs=lambda: file_of(data_root(None), FILE),
    )


def _paper() -> Scale:
    from flatmin_lab.data.cifar_binary import CIFAR10, cifar
    from flatmin_lab.data.root import data_root, file_of
    from flatmin_lab.models.resnet_gn import ResNetGN

    def load(seed: int) -> Splits:
        splits = cifar(CIFAR10, data_root(None), seed)
        return Splits(*(_standardised(s) for s in (splits.train, splits.validation, splits.test)))

    def needs() -> None:
        file_of(data_root(None), CIFAR10.archive)
        if not torch.cuda.is_available():
            raise LabError(
                "size is 'paper', which fits a ResNet-18 to 450,000 images with random labels, and there is no GPU "
                "here that torch can use. Run it where there is one, or take --size small."
            )

    return Scale(
        task="CIFAR-10, ResNet-18 GN",
        load=load,
        network=ResNetGN,
        shape="ResNetGN, width 64, 32 in a group, 32 pixels",
        misleading=Misleading(10, 0.1, Fit(0.05, 0.9, 256, 300, share=0.99), Fit(0.01, 0.0, 256, 1000)),
        fresh=Fit(0.05, 0.9, 256, 200),
        ways=ways(rs=(2.0, 8.0, 32.0, 128.0), sa=(0.125, 0.5, 2.0, 8.0), batches=(1, 64, 128)),
        num_steps=50_000,
        seeds=3,
        tuning_seeds=1,
        looks=20,
        traces=5,
        measured=2000,
        num_matvecs=50,
        device="cuda",
        needs=needs,
    )


SIZES: dict[str, Callable[[], Scale]] = {"toy": _toy, "small": _small, "paper": _paper}
"""What makes each size; nothing is loaded before."""

# Damian, Ma, Lee's.
_MEAN, _DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def _standardised(split: Split) -> Split:
    mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in (_MEAN, _DEVIATION))
    return Split(changed(split.inputs, lambda x: (x.to(torch.float32) / 255 - mean) / deviation), split.targets)


def _halved(split: Split) -> Split:
    return Split(changed(split.inputs, lambda x: functional.avg_pool2d(x, 2)), split.targets)

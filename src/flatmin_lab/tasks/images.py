"""Residual networks that were trained on many images, fine-tuned on few."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

from flatmin_lab.tasks.task import Measuring, Setting, Task

if TYPE_CHECKING:
    from torch import nn

    from flatmin_lab.data.splits import Splits

_RESNET20 = "resnet20_cifar10.safetensors"

# Those of the NSO paper and of its authors' scripts, made as long as the others' where they are shorter.
PUBLISHED_GRIDS = {
    "sigma": (0.008, 0.01, 0.012, 0.014),
    "rho": (0.01, 0.02, 0.05, 0.1),
    "asam": (0.2, 0.5, 1.0, 2.0),
}
"""Values of sigma and rho for fine-tuning."""


def _cifar(seed: int) -> Splits:
    from flatmin_lab.data.cifar import drawn_splits

    return drawn_splits(seed)


def _resnet20() -> nn.Module:
    from flatmin_lab.data.root import data_root, file_of
    from flatmin_lab.models.loading import load_subject

    return load_subject(file_of(data_root(None), _RESNET20), kind="resnet20").model.train()


_FINE_TUNING = Task(
    "cifar10-jpeg75-resnet20",
    "ResNet-20 trained on CIFAR-10, fine-tuned on 2,000 of its images after JPEG; under the data root",
    _cifar,
    _resnet20,
    Setting(learning_rate=0.01, momentum=0.9, batch_size=32, weight_decay=1e-4),
    kind="resnet20",
    measuring=Measuring(points=5, batch_size=64, examples=256, authors_layers="conv", surface=False),
    grids=PUBLISHED_GRIDS,
    files={
        "cifar10_jpeg75.npz": "CIFAR-10 (www.cs.toronto.edu/~kriz/cifar.html) as JPEG of quality 75, in the layout of "
        "flatmin_lab.data.cifar",
        _RESNET20: "a ResNet-20 for 32 x 32 pixels trained on CIFAR-10, its weights called as in "
        "flatmin_lab.models.resnet_cifar",
    },
)


def _photographs(source: str, seed: int) -> Splits:
    from flatmin_lab.data.root import data_root
    from flatmin_lab.data.sources import SOURCES

    return SOURCES[source].load(data_root(None), seed)


def _resnet34(source: str) -> nn.Module:
    from flatmin_lab.data.root import data_root
    from flatmin_lab.data.sources import SOURCES
    from flatmin_lab.models.pretrained import resnet34

    return resnet34(data_root(None), SOURCES[source].num_classes)


def _needed(source: str) -> dict[str, str]:
    from flatmin_lab.data.sources import SOURCES
    from flatmin_lab.models.pretrained import FILES

    return {**SOURCES[source].files, **FILES}


# The setting that the paper's appendix has a grid around; which of it was chosen is not printed.
_PAPER = Setting(learning_rate=0.001, momentum=0.9, batch_size=32, weight_decay=1e-4)
_MEASURED = Measuring(points=30, batch_size=16, examples=1000, num_matvecs=50, authors_layers="conv", surface=False)

_SOURCES = {
    "cifar10": ("cifar10", "CIFAR-10"),
    "cifar100": ("cifar100", "CIFAR-100"),
    "aircraft": ("aircraft", "FGVC-Aircraft"),
    "caltech256": ("caltech256", "Caltech-256"),
    "indoor": ("indoor67", "MIT Indoor-67"),
    "retina": ("retina", "Messidor-2"),
}
"""What a task begins with, to the source of its images and what people call that."""


def _paper(name: str, source: str, data: str) -> Task:
    return Task(
        f"{name}-resnet34",
        f"ResNet-34 trained on ImageNet, fine-tuned on {data} at 224 pixels; under the data root",
        functools.partial(_photographs, source),
        functools.partial(_resnet34, source),
        _PAPER,
        kind="resnet34",
        measuring=_MEASURED,
        grids=PUBLISHED_GRIDS,
        files=functools.partial(_needed, source),
    )


def _along(of: Task) -> Task:
    return replace(
        of,
        name=f"{of.name}-along",
        summary=f"{of.summary}; with curvature, perturbation gap and test loss at every point",
        measuring=replace(of.measuring, along=0.01),
    )


_PAPERS = tuple(_paper(name, source, data) for name, (source, data) in _SOURCES.items())

IMAGES = (_FINE_TUNING, _along(_FINE_TUNING), *_PAPERS, _along(_PAPERS[0]))

"""The networks and data of the perturbation gap: a perceptron on digits, a graph network, an encoder of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flatmin.checks import choice
from flatmin.curvature.data import Forward, LossFunction
from flatmin.curvature.layout import Layout, trainable_parameters
from flatmin.errors import ArgumentError
from flatmin_lab.data.root import data_root
from flatmin_lab.seeds import derive, generator

if TYPE_CHECKING:
    from pathlib import Path

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
_MEASURED = 1000  # examples at a time


@dataclass(frozen=True)
class Problem:
    """A network to be trained and measured.

    Attributes:
        model: Fresh or pretrained.
        network: What it is, in a few words.
        data: What its data are, in a few words.
        count: Examples of the training set.
        batch: Given the numbers of examples, the batch of them.
        loss_fn: The mean loss over a batch.
        perturbed: Patterns of the names of the parameters that noise is added to.
        measured_at_once: Examples that are measured on at a time.
    """

    model: nn.Module
    network: str
    data: str
    count: int
    batch: Callable[[list[int]], Any]
    loss_fn: LossFunction
    perturbed: tuple[str, ...]
    measured_at_once: int = _MEASURED

    def measured(self) -> list[Any]:
        """Return the whole training set in order, as batches to measure on."""
        return [self.batch(several.tolist()) for several in torch.arange(self.count).split(self.measured_at_once)]

    def leave_only_perturbed(self) -> None:
        """Freeze the parameters that noise is not added to, so that traces and gaps are of the others alone."""
        parameters = trainable_parameters(self.model)
        chosen = set(Layout.of(parameters).matching(*self.perturbed))
        for name, parameter in parameters.items():
            parameter.requires_grad = name in chosen

    @torch.no_grad()
    def accuracy(self, batches: Sequence[Any]) -> float:
        """Return the share of the examples that the model, in evaluation mode, classifies rightly."""
        forward, hits = Forward(self.model, self.loss_fn), 0
        for batch in batches:
            output = forward.output(batch)
            targets = batch["labels"] if isinstance(batch, dict) else batch[1]
            hits += int((getattr(output, "logits", output).argmax(dim=1) == targets).sum())
        return hits / self.count


def perceptron(root: Path | None, seed: int, *, activation: str, data: str, count: int | None = None) -> Problem:
    """A network of one hidden layer on digits, in double precision.

    Args:
        root: The data root.
        seed: Of the initial weights.
        activation: A key of `ACTIVATIONS`.
        data: ``"digits"``, scikit-learn's, with 32 hidden units, or ``"mnist"``, with 128.
        count: Examples of the training set, the first of one random order; None for all.
    """
    from flatmin_lab.recipes import data as sources

    choice("activation", activation, ACTIVATIONS)
    split, _ = getattr(sources, choice("data", data, ("digits", "mnist")))(root)
    # Files may be sorted by class; the order depends on the data set alone.
    chosen = torch.randperm(len(split), generator=generator(0, f"{data}: examples"))[:count]
    inputs, targets = split.inputs[chosen].flatten(1).double(), split.targets[chosen]
    width = 32 if data == "digits" else 128
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initial weights"))
        first, last = nn.Linear(inputs.shape[1], width), nn.Linear(width, 10)
    return Problem(
        model=nn.Sequential(first, ACTIVATIONS[activation](), last).double(),
        network=f"perceptron {inputs.shape[1]}-{width}-10, {activation}",
        data=data,
        count=len(targets),
        batch=lambda numbers: (inputs[numbers], targets[numbers]),
        loss_fn=functional.cross_entropy,
        perturbed=("*.weight",),
    )


def graph_network(root: Path | None, seed: int, *, activation: str, per_class: int, width: int = 128) -> Problem:
    """A graph network of two convolutions on ego networks of authors, in double precision.

    Args:
        root: The data root.
        seed: Of the initial weights.
        activation: A key of `ACTIVATIONS`.
        per_class: Graphs of each field.
        width: Of the hidden layers.
    """
    from flatmin_lab.data.graphs import batch_of, ego_networks
    from flatmin_lab.models.gcn import GCN

    choice("activation", activation, ACTIVATIONS)
    graphs = ego_networks(data_root(root), per_class)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initial weights"))
        model = GCN(width=width, activation=ACTIVATIONS[activation]).double()
    return Problem(
        model=model,
        network=f"GCN, two layers of {width}, {activation}",
        data="ego networks of three fields",
        count=len(graphs),
        batch=lambda numbers: batch_of([graphs[i] for i in numbers]),
        loss_fn=functional.cross_entropy,
        perturbed=("conv*.weight", "head.weight"),
    )


def encoder(root: Path | None, weights: Path | None, seed: int, *, count: int | None, length: int = 128) -> Problem:
    """A pretrained encoder of BERT's architecture on pairs of sentences (MRPC), in single precision.

    Noise is added to the linear layers of the encoder and to the classifier, not to embeddings, normalisations and the
    pooler, as in the authors' code.

    Args:
        root: The data root.
        weights: Folder of transformers with the pretrained weights and the tokenizer.
        seed: Of the classifier, where it is fresh.
        count: Pairs of the training set, the first; None for all.
        length: The most tokens of a pair.

    Raises:
        ArgumentError: ``weights`` is not named.
    """
    from flatmin_lab.data.text import mrpc
    from flatmin_lab.models.loading import load_subject

    if weights is None:
        raise ArgumentError(
            "the encoder needs pretrained weights, and no folder is named. Give one of transformers (config.json, "
            "model.safetensors and a tokenizer) of BERT's architecture: weights=FOLDER."
        )
    pairs = mrpc(data_root(root), test=False)
    subject = load_subject(weights, head_seed=derive(seed, "initial weights"))
    pairs = pairs.chosen(list(range(len(pairs)))[:count])

    def batch(numbers: list[int]) -> dict[str, Tensor]:
        some = pairs.chosen(numbers)
        texts = (list(some.first), list(some.second or ()))
        tokens = subject.tokenizer(*texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return {**tokens, "labels": torch.tensor(some.labels)}

    return Problem(
        model=subject.model,
        network=f"{subject.kind}, {getattr(subject.model.config, 'num_hidden_layers', '?')} layers",
        data="MRPC",
        count=len(pairs),
        batch=batch,
        loss_fn=lambda output, given: functional.cross_entropy(output.logits, given["labels"]),
        perturbed=(
            *(f"*encoder.layer.*.{kind}.weight" for kind in ("query", "key", "value", "dense")),
            "classifier.weight",
        ),
        measured_at_once=16,
    )

"""What the code of Zhang, Li and Ju prints as trace and as λ₁, for comparison with the tables of their paper only.

- Zhang, H., Li, D. and Ju, H. (2024). Noise stability optimization for finding flat minima. TMLR, arXiv:2306.08553.

Neither number is what its name in the paper says; :func:`flatmin.curvature.trace` and
:func:`flatmin.curvature.top_eigenvalues` are. The formulas were read off the authors' published measurement code
(VirtuosoResearch/Noise-stability-optimization); none of it is copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flatmin.checks import choice, positive, whole
from flatmin.curvature.counted import Counted
from flatmin.curvature.draws import columns
from flatmin.curvature.operators import Operator, RiskOperator
from flatmin.curvature.results import Measured, TraceEstimate
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.noise import Gaussian
from flatmin.streams import Stream
from flatmin.vectors import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from flatmin.curvature.layout import Layout

_STREAM = int.from_bytes(b"authors")
_TINY = 1e-6  # the authors' guard against division by zero


def _named_conv(name: str, module: nn.Module) -> bool:
    return (type(module) is nn.Conv2d and "conv" in name) or (type(module) is nn.Linear and "pred_head" in name)


def _linear(name: str, module: nn.Module) -> bool:
    return type(module) is nn.Linear and not any(part in name for part in ("LayerNorm", "embeddings", "pooler"))


def _conv1d(_: str, module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


LAYERS: dict[str, Callable[[str, nn.Module], bool]] = {"conv": _named_conv, "linear": _linear, "conv1d": _conv1d}
"""Which modules' weights the authors measure: for ResNets, for BERT and ViT, for GPT-2."""


@dataclass(frozen=True, kw_only=True)
class AuthorsLambda(Measured):
    """What the authors' code prints as λ₁; see :func:`authors_lambda`.

    Attributes:
        value: Σ_l v_lᵀ(Hv)_l.
        layers: Its terms by the names of the weights.
    """

    value: float
    layers: dict[str, float]


def authors_lambda(
    operator: Operator,
    *,
    layers: str | Sequence[str] = "conv",
    max_iterations: int = 100,
    tol: float = 1e-3,
    seed: int = 0,
) -> AuthorsLambda:
    r"""Return the authors' "λ₁", which is not an eigenvalue: power iteration with every layer of length one.

    .. math:: v_l \leftarrow \frac{(Hv)_l}{\|(Hv)_l\| + 10^{-6}} \text{ for each layer } l, \qquad
        \text{value} = \sum_{l=1}^L v_l^\top (Hv)_l

    The vector v has length √L, not one. For a positive semidefinite H, whose v has settled, the value lies between the
    true λ₁ and L λ₁; on a 10-layer MLP it was 8.5 times λ₁. In their ResNet-34, L = 34. It stops when the sum changes
    by less than ``tol``, relatively, from one iteration to the next, and is then the sum *before*.

    Their tables average it over mini-batches, weighing a short last one like the others, and take the layers that
    ``layers`` names. To follow them, average over ``authors_lambda(Hessian(model, loss_fn, [batch]))``: the mean of
    such maxima is another number than that of the mean Hessian.

    Args:
        operator: On a model's parameters.
        layers: Whose weights: ``"conv"``, the ``Conv2d`` with "conv" in their name and the ``Linear`` with "pred_head"
            (which leaves out shortcuts, batch-norm, biases, and a head of another name); ``"linear"``, every
            ``Linear`` outside embeddings and pooler; ``"conv1d"``, transformers' ``Conv1D``; or patterns of parameter
            names.
        max_iterations: The most products.
        tol: Change at which it stops.
        seed: Seed of the start.

    Returns:
        The value and its terms.

    Raises:
        ArgumentError: No parameter is such a layer, or an argument is out of range.
        ArgumentTypeError: The operator has no named parameters, or an argument is of the wrong kind.
        NonFiniteError: A product is not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> _ = [nn.init.ones_(p) for p in model.parameters()]
        >>> from flatmin.curvature import Hessian, top_eigenvalues
        >>> H = Hessian(model, nn.functional.mse_loss, [(torch.ones(1, 2), torch.zeros(1, 1))])
        >>> round(authors_lambda(H, layers="linear").value, 1), round(float(top_eigenvalues(H).values[0]), 1)
        (69.2, 35.0)
    """
    A, layout, stream = _prepared(operator, layers, max_iterations, tol, seed)
    terms: Tensor | None = None
    with A.session():
        vector = _each_of_length_one(columns(A, stream, 0, 1, Gaussian()), layout)
        for _ in range(max_iterations):
            image = A.products(vector)
            now = _per_layer(vector * image, layout)[0]
            vector = _each_of_length_one(image, layout)
            if terms is not None and _settled(float(terms.sum()), float(now.sum()), tol):
                break
            terms = now
    assert terms is not None  # noqa: S101  (at least one iteration was made)
    named = dict(zip(layout.shapes, terms.tolist(), strict=True))
    return AuthorsLambda(value=float(terms.sum()), layers=named, seed=seed, **A.cost())


def authors_trace(
    operator: Operator,
    *,
    layers: str | Sequence[str] = "conv",
    max_iterations: int = 100,
    tol: float = 1e-3,
    seed: int = 0,
) -> TraceEstimate:
    r"""Return the authors' trace: of some layers only, by Hutchinson's method, stopped when the mean stands still.

    It stops when the running mean of z'Hz changes by less than ``tol``, relatively, from one probe to the next. A mean
    of n numbers changes by a difference over n, whatever its error: the rule stops after 26 probes on average, at times
    after 2, and the mean is then off by some 8 % where ``tol`` is 0.1 %. And it picks the moment: the standard error
    below is that of as many probes without the rule.

    Which layers: see ``layers`` of :func:`authors_lambda`. Their method perturbs *every* parameter; downsampling
    convolutions, normalisation layers and biases are then missing from the trace that is to explain its effect. Their
    tables average over mini-batches.

    Args:
        operator: On a model's parameters.
        layers: Whose weights; see :func:`authors_lambda`.
        max_iterations: The most products: 100, or 200 in the authors' text experiments.
        tol: Change at which it stops: 1e-3, or 1e-4 in the authors' text experiments.
        seed: Seed of the signs.

    Returns:
        The mean, with the standard error and the samples it is made of.

    Raises:
        ArgumentError: No parameter is such a layer, or an argument is out of range.
        ArgumentTypeError: The operator has no named parameters, or an argument is of the wrong kind.
        NonFiniteError: A product is not finite.

    Example:
        >>> from flatmin.curvature import Hessian
        >>> H = Hessian(nn.Linear(2, 1), nn.functional.mse_loss, [(torch.ones(1, 2), torch.zeros(1, 1))])
        >>> authors_trace(H, layers="linear").num_matvecs < 100
        True
    """
    A, layout, stream = _prepared(operator, layers, max_iterations, tol, seed)
    samples: list[float] = []
    mean = 0.0
    with A.session():
        for j in range(max_iterations):
            probe = columns(A, stream, j, 1)
            samples.append(float(_per_layer(probe * A.products(probe), layout).sum()))
            before, mean = mean, sum(samples) / len(samples)
            if _settled(before, mean, tol):
                break
    drawn = torch.tensor(samples, dtype=torch.float64)
    stderr = float(drawn.std()) / math.sqrt(len(drawn)) if len(drawn) > 1 else math.nan
    return TraceEstimate(value=mean, stderr=stderr, samples=drawn, seed=seed, method="authors", **A.cost())


def _settled(before: float, now: float, tol: float) -> bool:
    return abs(now - before) / (abs(before) + _TINY) < tol


def _prepared(
    operator: Operator, layers: str | Sequence[str], max_iterations: int, tol: float, seed: int
) -> tuple[Counted, Layout, Stream]:
    """Check the arguments; return the layers' block, where they lie in it, and the stream of the vectors."""
    A, layout = _restricted(operator, layers)
    whole("max_iterations", max_iterations, minimum=1, hint="It is the most products to spend.")
    positive("tol", tol, hint="It is the relative change at which the iteration stops.")
    whole("seed", seed, minimum=0, hint="It is the seed of the random vectors.")
    return A, layout, Stream(seed).child(_STREAM)


def _per_layer(vectors: Tensor, layout: Layout) -> Tensor:
    """Return the sums over each layer's coordinates of ``vectors`` (d, m), shape (m, L)."""
    wide = accumulation_dtype(vectors.device)
    return torch.stack([part.sum(dim=0, dtype=wide) for part in vectors.split(layout.sizes)], dim=1)


def _each_of_length_one(vectors: Tensor, layout: Layout) -> Tensor:
    return torch.cat([part / (part.norm() + _TINY) for part in vectors.split(layout.sizes)])


def _restricted(operator: Operator, layers: str | Sequence[str]) -> tuple[Counted, Layout]:
    """Return the diagonal block of the layers' weights, and where they lie in it."""
    if not isinstance(operator, Operator):
        raise ArgumentTypeError(
            f"the operator is a {type(operator).__name__} without named parameters, so it has no layers. Pass "
            "Hessian(model, loss_fn, batches)."
        )
    block = operator.block(*(_weights(operator, layers) if isinstance(layers, str) else layers))
    return Counted(block), block.layout


def _weights(operator: Operator, layers: str) -> list[str]:
    chosen = LAYERS[choice("layers", layers, LAYERS)]
    if not isinstance(operator, RiskOperator):
        raise ArgumentTypeError(
            f"layers is {layers!r}, kinds of modules, but a {type(operator).__name__} knows no modules. Name the "
            "parameters: layers=['conv1.weight', 'layer1.*.weight']."
        )
    modules = operator.risk.model.named_modules()
    weights = [f"{name}.weight".lstrip(".") for name, module in modules if chosen(name, module)]
    found = [name for name in weights if name in operator.layout.shapes]
    if not found:
        raise ArgumentError(
            f"layers is {layers!r}, but {type(operator.risk.model).__name__} has no trainable weight of that kind. "
            f"Kinds are {', '.join(map(repr, LAYERS))}; or name the parameters: layers=['fc.weight']."
        )
    return found

r"""The perturbation gap layer by layer.

- Zhang, Li, Ju. Noise Stability Optimization for Finding Flat Minima. arXiv:2306.08553, equations (1) to (4).
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from flatmin.curvature.layerwise import Layer, LayerwiseResult
from flatmin.curvature.layerwise.groups import grouped
from flatmin.curvature.risk import EmpiricalRisk
from flatmin.measures.gap import Pairs, checked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from torch.distributed import ProcessGroup

    from flatmin.curvature.data import LossFunction
    from flatmin.curvature.layerwise.groups import Groups
    from flatmin.curvature.observe import Mode
    from flatmin.noise import Law


def layerwise_gap(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    sigma: float,
    groups: Groups = "module",
    num_samples: int = 100,
    noise: str | Law = "gaussian",
    seed: int = 0,
    mode: Mode = "eval",
    group: ProcessGroup | None = None,
) -> LayerwiseResult:
    r"""Estimate the perturbation gap of each layer: noise in its weights alone.

    .. math:: \mathbb E\,f(W + U_b) - f(W) = \frac{\sigma^2}{2} \operatorname{tr} \nabla^2_{bb} f(W) + O(\sigma^4)

    with U_b the noise of layer b and zero elsewhere: equation (4) of the paper for a block. To second order the layers
    add up to the gap of all; beyond it they do not, since noise in two layers meets their common derivatives too. There
    are therefore no shares; ``layerwise(trace, H)`` has them.

    Args:
        model: The model; its parameters that require gradients are moved.
        loss_fn: As in :func:`perturbation_gap`, like ``batches`` and what else is not said here.
        batches: Re-iterable batches.
        sigma: Standard deviation of each coordinate of U, in units of the weights.
        groups: Which parameters make a layer, as in :func:`~flatmin.curvature.layerwise`: ``"module"``,
            ``"parameter"``, or layer names to patterns of parameter names.
        num_samples: Pairs of points for each layer; at least 2. Cost: 2 n evaluations of the loss a layer, and one.
        noise: Law of U.
        seed: Seed of the noise; each parameter gets the same noise as when all are moved.
        mode: ``"eval"`` or ``"current"``.
        group: Ranks that hold batches of their own.

    Returns:
        A row a layer; ``row.estimate`` is its :class:`GapEstimate`.

    Raises:
        ArgumentError: As in :func:`perturbation_gap`, or the groups do not fit.
        ArgumentTypeError: An argument is of the wrong kind.
        DataError: The data are empty, change between passes, or have an unknown form.
        NonFiniteError: A loss is NaN or infinite.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(3, 1)
        >>> _ = [nn.init.zeros_(p) for p in model.parameters()]
        >>> data = [(torch.eye(3), torch.zeros(3, 1))]
        >>> gaps = layerwise_gap(model, nn.functional.mse_loss, data, sigma=0.1, groups="parameter", noise="rademacher")
        >>> {row.name: round(row.estimate.trace.value, 4) for row in gaps}       # 2/3 · 3 and 2
        {'weight': 2.0, 'bias': 2.0}
    """
    sigma = checked(sigma, seed, num_samples)
    risk = EmpiricalRisk(model, loss_fn, batches, mode=mode, sharded=True, group=group)
    layers, clean, rows = grouped(risk.layout, groups), None, list[Layer]()
    with risk.observed():
        for name, moved in layers.items():
            with closing(Pairs(risk, noise, seed, moved, clean)) as pairs:
                gap, clean = pairs.estimate(sigma, num_samples), pairs.clean_loss
            size = sum(risk.layout.shapes[n].numel() for n in moved)
            rows.append(Layer(name=name, parameters=moved, size=size, value=gap.value, stderr=gap.stderr, estimate=gap))
    spent = num_samples * len(layers)
    return LayerwiseResult(
        quantity="gap",
        layers=tuple(rows),
        num_matvecs=spent,
        gradients=(2 * spent + 1) / 3,
        seed=seed,
        route="second differences of losses, forward passes only",
    )

"""The training of a certificate's prior and posterior: NSO at the posterior's σ, at the price of distance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from flatmin import NSO
from flatmin.bounds.monte_carlo import P_MIN
from flatmin.bounds.posterior import per_parameter
from flatmin_lab.seeds import derive, generator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flatmin_lab.data.splits import Split
    from flatmin_lab.recipes.certificates import CertificateRecipe
    from flatmin_lab.recipes.outcome import Watch

_MOMENTUM = 0.9


def fit(
    model: nn.Module,
    data: Split,
    recipe: CertificateRecipe,
    *,
    sigma: Mapping[str, float] | float,
    anchor: Mapping[str, Tensor] | None = None,
    seed: int,
    watch: Watch,
) -> None:
    """Train ``model`` by NSO at ``sigma``: the prior, or near ``anchor``, at the price of distance, the posterior."""
    stage, epochs = ("prior", recipe.prior_epochs) if anchor is None else ("posterior", recipe.epochs)
    steps = math.ceil(len(data) / recipe.batch_size)
    base = torch.optim.SGD(model.parameters(), lr=recipe.learning_rate, momentum=_MOMENTUM)
    radius: Any = dict(sigma) if isinstance(sigma, Mapping) else sigma
    optimizer = NSO(base, sigma=radius, seed=derive(seed, f"{stage}: perturbations"))
    schedule: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, epochs * steps))
    source = generator(seed, f"{stage}: batch order")
    widths = per_parameter("sigma", sigma, dict(model.named_parameters()))
    price = math.log(1 / P_MIN) / ((1 - recipe.prior_share) * len(data))
    for epoch in range(epochs):
        for step, chosen in enumerate(torch.randperm(len(data), generator=source).split(recipe.batch_size)):
            x, y = data.inputs[chosen], data.targets[chosen]
            for probe in optimizer.probes():
                with probe:
                    functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            if anchor is not None:
                _pull(model, anchor, {n: price * schedule.get_last_lr()[0] / w**2 for n, w in widths.items()})
            schedule.step()
            if step % 50 == 0:
                watch(stage, epoch * steps + step, epochs * steps)


@torch.no_grad()
def _pull(model: nn.Module, anchor: Mapping[str, Tensor], strength: Mapping[str, float]) -> None:
    """Take the proximal step of ``strength``/2 ‖W - W₀‖²; as part of the gradient so stiff a term would diverge."""
    for name, parameter in model.named_parameters():
        # Momentum makes ten steps of one, and the two terms must balance where the gradient's and this one's do.
        parameter.lerp_(anchor[name], 1 - 1 / (1 + strength[name] / (1 - _MOMENTUM)))

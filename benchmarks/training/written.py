"""Two ways of training that are common, written here from what their papers and documentation say."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.distributions import Normal

from training.problems import Instance

RADIUS = 1e-3


def three_passes(instance: Instance) -> Callable[[], None]:
    """Return NSO with a pass at the weights, one at w + u and one at w - u; noise as distribution objects draw it.

    The first pass is for the loss that is reported; its gradient has weight zero. Weights come back by subtraction.
    """
    base = instance.sgd()
    parameters = list(instance.model.parameters())
    law = Normal(torch.tensor(0.0, device=instance.device), torch.tensor(RADIUS, device=instance.device))

    def step() -> None:
        instance.backward()
        base.zero_grad()
        noise = [law.sample(parameter.shape) for parameter in parameters]
        with torch.no_grad():
            for parameter, u in zip(parameters, noise, strict=True):
                parameter.add_(u)
        instance.backward()
        with torch.no_grad():
            for parameter, u in zip(parameters, noise, strict=True):
                parameter.sub_(2 * u)
        instance.backward()
        with torch.no_grad():
            for parameter, u in zip(parameters, noise, strict=True):
                parameter.add_(u)
                if parameter.grad is not None:
                    parameter.grad.div_(2)
        base.step()
        base.zero_grad()

    return step


def two_calls(instance: Instance) -> Callable[[], None]:
    """Return SAM (Foret et al., 2021, algorithm 1) as the class with two calls that most repositories carry does it.

    A norm for each parameter and one of those norms, a copy of each parameter, a climb of its own for each.
    """
    base = instance.sgd()
    parameters = list(instance.model.parameters())

    def step() -> None:
        instance.backward()
        with torch.no_grad():
            present = [p for p in parameters if p.grad is not None]
            norm = torch.stack([p.grad.norm(2) for p in present]).norm(2)
            scale = RADIUS / (norm + 1e-12)
            before = [p.clone() for p in present]
            for parameter in present:
                parameter.add_(parameter.grad * scale.to(parameter))
        base.zero_grad()
        instance.backward()
        with torch.no_grad():
            for parameter, value in zip(present, before, strict=True):
                parameter.copy_(value)
        base.step()
        base.zero_grad()

    return step

r"""Laws of weight noise: each has mean zero and variance one in every coordinate, and is symmetric about zero.

Multiplied by sigma they are the distribution :math:`\mathcal P` of Zhang, Li, Ju (arXiv:2306.08553, Algorithm 1), whose
analysis asks for exactly these three properties. The authors' own "binomial" is Binomial(4, 1/2) with its mean of 2
left in: that pushes every weight by 2 sigma in one direction. Here it is centred.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from flatmin.checks import choice, whole
from flatmin.errors import ArgumentError, ArgumentTypeError


class Law(Protocol):
    """What a law of noise can do.

    A law whose ``is_sequential`` is true promises two things: it keeps nothing between calls, so that several threads
    may use it at once, and it fills a long tensor with the same numbers when it is called for one piece of it after the
    other (:mod:`flatmin.noise.pieces`). Long parameters are then displaced piece by piece, on all threads; on one if
    ``is_cheap`` is true, where a piece takes no longer than Python takes to hand it to a thread.
    """

    def sample_(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Fill ``out`` (any shape, any float dtype) with independent draws and return it."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """The normal law N(0, 1).

    Example:
        >>> Gaussian().sample_(torch.empty(2, 3), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """

    is_sequential: ClassVar[bool] = True

    def sample_(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Fill ``out`` with draws."""
        return out.normal_(generator=generator)


@dataclass(frozen=True)
class Laplace:
    """The Laplace law of scale 1/√2, whose variance is one; kurtosis 6."""

    def sample_(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Fill ``out`` with draws: the difference of two exponentials of rate √2."""
        other = torch.empty_like(out).exponential_(math.sqrt(2), generator=generator)
        return out.exponential_(math.sqrt(2), generator=generator).sub_(other)


@dataclass(frozen=True)
class Uniform:
    """The uniform law on [-√3, √3]; kurtosis 1.8."""

    is_sequential: ClassVar[bool] = True

    def sample_(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Fill ``out`` with draws."""
        return out.uniform_(-math.sqrt(3), math.sqrt(3), generator=generator)


@cache
def _signs_of_bytes(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the (256, 8) table of the signs that the bits of each byte stand for."""
    bits = (torch.arange(256, device=device).unsqueeze(1) >> torch.arange(8, device=device)) & 1
    return (2 * bits - 1).to(dtype)


@dataclass(frozen=True)
class Rademacher:
    """Independent fair signs; kurtosis 1, the least a law of unit variance can have. Cheapest to draw."""

    is_sequential: ClassVar[bool] = True
    is_cheap: ClassVar[bool] = True

    def sample_(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Fill ``out`` with draws, eight to a random byte: over ten times faster than drawing them one by one."""
        num_bytes = -(-out.numel() // 8)
        words = torch.empty(-(-num_bytes // 8), dtype=torch.int64, device=out.device)
        words.random_(-(2**63), None, generator=generator)
        table, which = _signs_of_bytes(out.dtype, out.device), words.view(torch.uint8)[:num_bytes].int()
        if out.numel() % 8 == 0 and out.is_contiguous():
            torch.index_select(table, 0, which, out=out.view(-1, 8))
            return out
        signs = table.index_select(0, which)
        return out.copy_(signs.view(-1)[: out.numel()].view(out.shape))


@dataclass(frozen=True)
class Binomial:
    """The centred binomial law (Bin(n, 1/2) - n/2) / (√n / 2); kurtosis 3 - 2/n. For n = 4 the values are -2 ... 2.

    Args:
        num_trials: n.
    """

    num_trials: int = 4

    def __post_init__(self) -> None:
        whole("num_trials", self.num_trials, minimum=1, hint="It is n of Binomial(n, 1/2); the paper uses 4.")

    def sample_(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Fill ``out`` with draws: the normalised sum of n fair signs."""
        signs, total = torch.empty_like(out), torch.zeros_like(out)
        for _ in range(self.num_trials):
            total.add_(Rademacher().sample_(signs, generator))
        return out.copy_(total).div_(math.sqrt(self.num_trials))


LAWS: dict[str, Law] = {
    "gaussian": Gaussian(),
    "laplace": Laplace(),
    "uniform": Uniform(),
    "rademacher": Rademacher(),
    "binomial": Binomial(),
}


def resolve_law(noise: str | Law) -> Law:
    """Return the law called ``noise``, or ``noise`` itself if it is one.

    Raises:
        ArgumentError: No law has that name, or (Cauchy) the law has no variance.
        ArgumentTypeError: ``noise`` is neither a name nor a law.
    """
    if isinstance(noise, str):
        if noise.lower() == "cauchy":
            raise ArgumentError(
                "noise is 'cauchy', but that law has neither mean nor variance, so no sigma scales it and the smoothed "
                "loss does not exist. For heavy tails take 'laplace'."
            )
        return LAWS[choice("noise", noise, LAWS)]
    if isinstance(noise, type) or not callable(getattr(noise, "sample_", None)):
        raise ArgumentTypeError(
            f"noise is {noise!r}, which is neither the name of a law nor an object with sample_(out, generator). "
            f"Names are {', '.join(map(repr, LAWS))}; an instance looks like Binomial(4)."
        )
    return noise

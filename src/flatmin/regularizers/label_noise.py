r"""Label noise: the targets of a step are drawn anew around the true ones, and the weights are left alone.

SGD on such targets is drawn to flat minima by itself. At a minimum that fits the data the noise of its gradient has the
covariance :math:`(\sigma^2/B)\nabla^2L`, under which the weights diffuse, to second order, down the gradient of
:math:`\operatorname{tr}\nabla^2L` (Damian, Ma, Lee, arXiv:2106.06530). The methods of :mod:`flatmin.optim` regularise
the same trace, but explicitly: they evaluate displaced weights.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor

from flatmin.checks import nonnegative, whole
from flatmin.distributed import this_rank
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.noise import Rademacher
from flatmin.streams import Stream
from flatmin.vectors import accumulation_dtype


class _TargetTransform:
    """A transform of targets with a random stream of its own: one draw a call, one address a call and rank."""

    def __init__(self, seed: int, rank: int | None) -> None:
        self._seed = whole("seed", seed, minimum=0, hint="It is the seed of the noise in the targets.")
        if rank is not None:
            whole("rank", rank, minimum=0, hint="It numbers the workers that see different examples; None asks torch.")
        self._rank = rank
        self._calls = 0

    def _generator(self, device: torch.device) -> torch.Generator:
        """Return the generator of this call, and count the call."""
        # The class is part of the address, so that equal seeds share nothing with each other or with an optimizer's.
        path = (
            zlib.crc32(type(self).__name__.encode()),
            self._calls,
            this_rank() if self._rank is None else self._rank,
        )
        self._calls += 1
        return Stream(self._seed, path).generator(0, device)

    def state_dict(self) -> dict[str, int]:
        """Return the seed and the number of calls; the same on every rank."""
        return {"seed": self._seed, "calls": self._calls}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the transform that gave ``state_dict`` stood; the seed is the checkpoint's.

        Raises:
            ArgumentError: It is no state of such a transform.
        """
        if set(state_dict) != {"seed", "calls"}:
            raise ArgumentError(
                f"state_dict has the entries {sorted(map(str, state_dict))}, but those of {type(self).__name__} are "
                "'calls' and 'seed'. Was another object's state passed?"
            )
        self._seed, self._calls = int(state_dict["seed"]), int(state_dict["calls"])


class LabelNoise(_TargetTransform):
    r"""Redraws each class label, with a given probability, uniformly among the other classes.

    .. math:: P(\tilde y = y) = 1 - p,\qquad P(\tilde y = c) = \frac{p}{K-1}\quad (c \neq y)

    Damian, Ma, Lee, arXiv:2106.06530, label-noise SGD for classification. Transform the labels **once per step, before
    the closure or the loop over probes**, so that all points of the step see the same ones; with gradient accumulation
    once for each micro-batch. Do so in the training loop, not in a data set: every worker of a ``DataLoader`` would
    repeat the noise of the others. In expectation the cross-entropy on these labels is label smoothing
    (:attr:`label_smoothing`); what the noise adds is the diffusion.

    Neither the global random states nor the optimizers' noise are touched, and on an accelerator nothing is waited for.
    There labels outside the classes cannot be reported, and pass unchanged.

    Args:
        probability: p, in [0, 1].
        num_classes: K, at least 2.
        seed: Seed of the noise.
        ignore_index: Label that is left alone, as in ``torch.nn.CrossEntropyLoss``. If it is one of the classes (a
            padding token), no label is ever redrawn as it.
        rank: Number of this worker among those that see different examples, each of which draws noise of its own. None:
            the rank in ``torch.distributed`` if that is initialised. Workers that share their examples (tensor
            parallelism) pass the same number.

    Raises:
        ArgumentError: A value that cannot work, by name.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> import torch, flatmin as fm
        >>> from torch.nn.functional import cross_entropy
        >>> model, x, y = torch.nn.Linear(3, 5), torch.ones(8, 3), torch.arange(8) % 5
        >>> noisy = LabelNoise(0.2, num_classes=5, seed=0)
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)  # by itself
        >>> opt.zero_grad()
        >>> cross_entropy(model(x), noisy(y)).backward()
        >>> opt.step()
        >>> opt = fm.NSO(opt, sigma=0.01)  # with a method that evaluates several points
        >>> labels = noisy(y)
        >>> for probe in opt.probes():
        ...     with probe:
        ...         cross_entropy(model(x), labels).backward()
        >>> opt.step()
    """

    def __init__(
        self,
        probability: float,
        num_classes: int,
        *,
        seed: int = 0,
        ignore_index: int = -100,
        rank: int | None = None,
    ) -> None:
        super().__init__(seed, rank)
        self._probability = nonnegative("probability", probability, hint="It is the share of labels that are redrawn.")
        if self._probability > 1:
            raise ArgumentError(f"probability is {probability}, but it is a share and must lie between 0 and 1.")
        self._num_classes = whole("num_classes", num_classes, minimum=2, hint="It is the number K of classes.")
        self._ignored = whole("ignore_index", ignore_index, minimum=-(2**63), hint="It is the label to leave alone.")
        self._ignores_a_class = 0 <= self._ignored < self._num_classes
        if self._num_classes - self._ignores_a_class < 2:
            raise ArgumentError(
                f"ignore_index is {ignore_index}, which is one of the {num_classes} classes, so that there is no other "
                "class to redraw a label as. Labels to be ignored usually lie outside the classes, as -100 does."
            )

    @property
    def label_smoothing(self) -> float:
        r"""The ``label_smoothing`` of ``torch.nn.CrossEntropyLoss`` that equals this noise in expectation: p K/(K - 1).

        Averaged over the noise, the true class weighs 1 - p and each other p/(K - 1); torch's smoothing by e weighs
        them 1 - e + e/K and e/K. Both are equal, for the loss and for its gradient, if e = p K/(K - 1), but for class
        weights with ``reduction="mean"``, whose denominator depends on the labels drawn.

        Raises:
            ArgumentError: p exceeds (K - 1)/K, so that the true label is rarer than the others, which no smoothing
                gives; or an ignored class is never drawn.
        """
        K = self._num_classes
        smoothing = self._probability * K / (K - 1)
        if self._ignores_a_class or smoothing > 1 + 1e-12:
            why = (
                f"class {self._ignored} is ignored and never drawn"
                if self._ignores_a_class
                else f"probability {self._probability} exceeds (K - 1)/K = {(K - 1) / K:.6g}, that of pure noise"
            )
            raise ArgumentError(f"No label smoothing equals this noise: {why}.")
        return min(smoothing, 1.0)

    def __call__(self, labels: Tensor) -> Tensor:
        """Return ``labels`` with noise, a new tensor of the same shape, dtype and device.

        Args:
            labels: Class indices from 0 to K - 1, or ``ignore_index``; any shape.

        Raises:
            ArgumentTypeError: They are no tensor of integers.
            ArgumentError: On a CPU: one of them lies outside the classes.
        """
        classes = self._classes(labels)
        shape, device, generator = labels.shape, labels.device, self._generator(labels.device)
        uniform = torch.rand(shape, generator=generator, dtype=accumulation_dtype(device), device=device)
        num_choices = self._num_classes - self._ignores_a_class
        shift = torch.randint(1, num_choices, shape, generator=generator, device=device)
        inside = (classes >= 0) & (classes < self._num_classes) & (classes != self._ignored)
        return torch.where(inside & (uniform < self._probability), self._moved(classes, shift), classes).to(
            labels.dtype
        )

    def _moved(self, classes: Tensor, shift: Tensor) -> Tensor:
        """Return the class that lies ``shift`` places further, around the circle of those that may be drawn."""
        if not self._ignores_a_class:
            return (classes + shift) % self._num_classes
        places = classes - (classes > self._ignored).long()
        moved = (places + shift) % (self._num_classes - 1)
        return moved + (moved >= self._ignored).long()

    def _classes(self, labels: Tensor) -> Tensor:
        if not isinstance(labels, Tensor):
            raise ArgumentTypeError(f"labels are a {type(labels).__name__}, but a tensor of class indices is needed.")
        if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
            raise ArgumentTypeError(
                f"labels are of type {labels.dtype}, but class indices are integers. Add the noise to the indices, "
                "before they are made one-hot or soft; the targets of a regression take TargetNoise."
            )
        classes = labels.long()
        if labels.device.type == "cpu":  # elsewhere the answer would have to be waited for
            outside = ((classes < 0) | (classes >= self._num_classes)) & (classes != self._ignored)
            if bool(outside.any()):
                raise ArgumentError(
                    f"labels contain {int(classes[outside][0])}, but there are {self._num_classes} classes, numbered "
                    f"from 0, and {self._ignored} is ignored. Check num_classes and ignore_index."
                )
        return classes


class TargetNoise(_TargetTransform):
    r"""Adds independent fair signs times sigma to the targets of a regression.

    .. math:: \tilde y = y + \varepsilon,\qquad \varepsilon = \pm\sigma

    Damian, Ma, Lee, arXiv:2106.06530. The mean of the squared error only gains the constant sigma²; what
    the noise changes is the diffusion. Transform the targets **once per step, before the closure or the loop over
    probes**, as with :class:`LabelNoise`.

    Args:
        sigma: Size of the noise, in the units of the targets.
        seed: Seed of the noise.
        rank: See :class:`LabelNoise`.

    Raises:
        ArgumentError: A value that cannot work, by name.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> noisy = TargetNoise(0.5, seed=0)
        >>> (noisy(torch.zeros(1000)).abs() == 0.5).all()
        tensor(True)
    """

    def __init__(self, sigma: float, *, seed: int = 0, rank: int | None = None) -> None:
        super().__init__(seed, rank)
        self._sigma = nonnegative("sigma", sigma, hint="It is the size of the noise, in the units of the targets.")

    def __call__(self, targets: Tensor) -> Tensor:
        """Return ``targets`` with noise, a new tensor of the same shape, dtype and device.

        Raises:
            ArgumentTypeError: They are no tensor of real numbers.
        """
        if not isinstance(targets, Tensor) or not targets.is_floating_point():
            kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
            raise ArgumentTypeError(
                f"targets are of type {kind}, but a tensor of real numbers is needed. Class indices take LabelNoise."
            )
        signs = Rademacher().sample_(torch.empty_like(targets), self._generator(targets.device))
        return targets.add(signs, alpha=self._sigma)

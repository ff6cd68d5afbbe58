r"""The curvature of a loss in the outputs of the model, factored into columns.

Examples are independent, so that the Hessian of the batch's loss in the outputs is block diagonal, and so are often
the positions within an example. With each block :math:`M = \sum_k \pm s_k s_k^\top`, the trace of the GGN is
:math:`\sum_k \pm \lVert J^\top s_k \rVert^2`. What form the blocks have is found out by products with the Hessian of
the loss, whose graph ends at the outputs: they cost nothing beside the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatmin.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flatmin.streams import Stream

_DENSE = 1024  # outputs in one block that is factored as a matrix
_WIDE = 2**24  # outputs in all that are still worth 64 bits


class Columns(ABC):
    """The columns of one output tensor's curvature, example by example.

    Attributes:
        mass: ± squared norms of the columns, (examples, columns), the sign being that of the column's term.
    """

    mass: Tensor

    @abstractmethod
    def combine(self, coefficients: Tensor) -> Tensor:
        """Return Σ_k c_k s_k for ``coefficients`` (..., examples, columns), in the shape and type of the output."""


class Separate(Columns):
    """Every output by itself: squared loss and the like."""

    def __init__(self, diagonal: Tensor) -> None:
        self._like = diagonal
        self.mass: Tensor = diagonal.reshape(len(diagonal), -1).double()
        self._scales = self.mass.abs().sqrt()

    def combine(self, coefficients: Tensor) -> Tensor:
        """See :class:`Columns`."""
        values = coefficients * self._scales
        return values.view(*values.shape[:-2], *self._like.shape).to(self._like.dtype)


class Softmax(Columns):
    r"""Softmax cross-entropy: blocks :math:`w\,(\mathrm{diag}(p) - pp^\top)`, factored by Cholesky in closed form.

    With the probabilities in descending order and :math:`r_k = \sum_{j \ge k} p_j`, elimination leaves
    :math:`\mathrm{diag}(p) - pp^\top / r_k` of the remaining classes, so that the k-th column is
    :math:`\sqrt{h_k}` at k and :math:`-p_j f_k` at j > k, with :math:`h_k = p_k r_{k+1} / r_k` and
    :math:`f_k = p_k / (r_k \sqrt{h_k})`. One column fewer than classes.

    Args:
        z: The outputs.
        axis: Which dimension the classes are.
        weights: w of each block, in the order of the other dimensions.
    """

    def __init__(self, z: Tensor, axis: int, weights: Tensor) -> None:
        self._like, self._axis = z, axis if axis < 0 else axis - z.dim()
        wide = torch.float64 if z.numel() <= _WIDE else torch.float32
        logits = z.detach().movedim(axis, -1).to(wide)
        self._p, self._order = logits.softmax(-1).sort(-1, descending=True)
        remaining = self._p.flip(-1).cumsum(-1).flip(-1)
        following = torch.cat([remaining[..., 1:], torch.zeros_like(remaining[..., :1])], dim=-1)
        self._root = (self._p * following / remaining).nan_to_num_().sqrt_()
        self._factor = (self._p / remaining / self._root).nan_to_num_(nan=0.0, posinf=0.0)
        below = self._p.square().flip(-1).cumsum(-1).flip(-1)
        below = torch.cat([below[..., 1:], torch.zeros_like(below[..., :1])], dim=-1)
        weights = weights.to(wide).unsqueeze(-1)
        self._scale = weights.abs().sqrt()
        self.mass: Tensor = (weights * (self._root.square() + self._factor.square() * below)).flatten(1)
        narrow = torch.promote_types(z.dtype, torch.float32)
        self._p, self._root, self._factor, self._scale = (
            t.to(narrow) for t in (self._p, self._root, self._factor, self._scale)
        )

    def combine(self, coefficients: Tensor) -> Tensor:
        """See :class:`Columns`."""
        c = coefficients.to(self._p.dtype).view(*coefficients.shape[:-2], *self._p.shape)
        weighed = c * self._factor
        above = weighed.cumsum(-1).sub_(weighed)
        values = (c * self._root).sub_(above.mul_(self._p)).mul_(self._scale)
        values = weighed.scatter_(-1, self._order.expand_as(values), values)
        return values.movedim(-1, self._axis).to(self._like.dtype)


class Dense(Columns):
    """Any symmetric blocks, by their eigenvectors.

    Args:
        blocks: (examples, blocks, b, b).
        restore: Brings (..., examples, blocks, b) into the form of the output.
    """

    def __init__(self, blocks: Tensor, restore: Callable[[Tensor], Tensor]) -> None:
        blocks = blocks.double()
        values, vectors = torch.linalg.eigh((blocks + blocks.mT) / 2)
        self._columns = vectors * values.abs().sqrt().unsqueeze(-2)
        self._values, self._restore = values, restore
        self.mass: Tensor = values.flatten(1)

    def combine(self, coefficients: Tensor) -> Tensor:
        """See :class:`Columns`."""
        c = coefficients.to(self._columns.dtype).view(*coefficients.shape[:-2], *self._values.shape)
        return self._restore((self._columns @ c.unsqueeze(-1)).squeeze(-1))


class OutputCurvature:
    """The curvature of a batch's loss in all output tensors, in columns.

    Args:
        loss: The loss of the batch, with its graph.
        outputs: The output tensors it is made of, examples first.
        stream: Where the probes that look for structure come from.

    Attributes:
        mass: ± squared norms of all columns, (examples, columns).
        dtype: The least precise type of the outputs and the loss.

    Raises:
        DataError: There is no structure that can be factored: the loss couples the examples, or too many outputs.
    """

    def __init__(self, loss: Tensor, outputs: Sequence[Tensor], stream: Stream) -> None:
        self._outputs = list(outputs)
        types = (loss.dtype, *(z.dtype for z in outputs))
        self.dtype: torch.dtype = max(types, key=lambda dtype: torch.finfo(dtype).eps)
        self._slopes = torch.autograd.grad(loss, self._outputs, create_graph=True)
        try:
            self._parts = [self._factor(i, stream) for i in range(len(self._outputs))]
        except RuntimeError as error:  # torch's way of saying that a derivative is missing
            raise DataError(f"the loss has no second derivative in the outputs ({error})") from error
        self.mass: Tensor = torch.cat([part.mass for part in self._parts], dim=1)
        del self._slopes

    def combine(self, coefficients: Tensor) -> list[Tensor]:
        """Return Σ_k c_k s_k for ``coefficients`` (..., examples, columns): one tensor for each output."""
        widths = [part.mass.shape[1] for part in self._parts]
        return [part.combine(c) for part, c in zip(self._parts, coefficients.split(widths, dim=-1), strict=True)]

    def _factor(self, index: int, stream: Stream) -> Columns:
        z = self._outputs[index]
        probe = torch.randn(z.shape, generator=stream.generator(index, z.device), device=z.device, dtype=z.dtype)
        image = self._product(index, probe, alone=True)

        def fits(candidate: Tensor) -> bool:
            return bool((candidate - image).norm() <= torch.finfo(self.dtype).eps ** 0.5 * image.norm())

        axes = [-1, 1] if z.dim() > 2 else [-1] * (z.dim() - 1)
        for axis in axes:
            weights, candidate = _softmax_like(z, probe, image, axis)
            if fits(candidate):
                return Softmax(z, axis, weights)
        diagonal = self._product(index, torch.ones_like(z))
        if fits(diagonal * probe):
            return Separate(diagonal)
        for axis in (*axes, None) if z.dim() > 2 else axes:
            blocks, restore = self._blocks(index, axis)
            if blocks is not None and fits(restore((blocks @ _flat(probe, axis).unsqueeze(-1)).squeeze(-1))):
                return Dense(blocks, restore)
        raise DataError(
            f"the loss is no sum over examples of terms that depend on one row each of the outputs {tuple(z.shape)}, "
            f"or couples more than {_DENSE} outputs of an example, so that its curvature there has no short form"
        )

    def _blocks(self, index: int, axis: int | None) -> tuple[Tensor | None, Callable[[Tensor], Tensor]]:
        """Return the blocks (examples, blocks, b, b) along ``axis``, or of whole examples, by b products."""
        z = self._outputs[index]
        like = z if axis is None else z.movedim(axis, -1)
        shape = (len(z), 1, z[0].numel()) if axis is None else (len(z), -1, like.shape[-1])

        def restore(blocks: Tensor) -> Tensor:
            whole = blocks.reshape(*blocks.shape[:-3], *like.shape).to(z.dtype)
            return whole if axis is None else whole.movedim(-1, axis if axis < 0 else axis - z.dim())

        if shape[2] > _DENSE or shape[2] * z.numel() > 2**28:
            return None, restore
        flat, rows = _flat(z, axis), []
        for j in range(shape[2]):
            unit = torch.zeros_like(flat)
            unit[..., j] = 1
            rows.append(_flat(self._product(index, restore(unit)), axis))
        return torch.stack(rows, dim=-1), restore

    def _product(self, index: int, vector: Tensor, *, alone: bool = False) -> Tensor:
        """Return the product with the loss's Hessian in one output; ``alone``: make sure that no other is touched."""
        slope = self._slopes[index]
        if not slope.requires_grad:
            return torch.zeros_like(vector)
        images = torch.autograd.grad(slope, self._outputs, vector, retain_graph=True, materialize_grads=True)
        if alone and any(image.any() for i, image in enumerate(images) if i != index):
            raise DataError("the loss couples several output tensors, so that its curvature in them has no short form")
        return images[index].detach()


def _flat(tensor: Tensor, axis: int | None) -> Tensor:
    """Return a tensor as (examples, blocks, b)."""
    if axis is None:
        return tensor.detach().reshape(len(tensor), 1, -1)
    tensor = tensor.detach().movedim(axis, -1)
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])


def _softmax_like(z: Tensor, probe: Tensor, image: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the weights w with which w (diag(p) - pp') comes nearest to the products in hand, and its products."""
    p = z.detach().softmax(axis)
    q = p * (probe - (p * probe).sum(axis, keepdim=True))
    weights = (image * q).sum(axis, keepdim=True) / q.square().sum(axis, keepdim=True)
    weights = weights.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return weights.squeeze(axis), weights * q

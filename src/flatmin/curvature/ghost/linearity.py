r"""In which parameters a network is piecewise linear, read off its graph.

A network z(W) that is piecewise linear in the single parameter tensor w, all others held fixed, has
:math:`\nabla_w^2 z = 0` almost everywhere, so that the diagonal block of H - GGN that belongs to w vanishes. It is if
between w and z stand only operations that are linear or piecewise linear in each operand, and w does not enter two
operands of one product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.curvature.ghost.graph import inputs_first, kind, leaves, saved

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn
    from torch.autograd.graph import Node


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Linear or piecewise linear in all operands together.
_LINEAR = _words(
    """
    Abs AdaptiveAvgPool2D AdaptiveAvgPool3D AdaptiveMaxPool2D AdaptiveMaxPool3D Add Alias Amax Amin AsStrided
    AvgPool2D AvgPool3D Cat Clamp ClampMax ClampMin Clone Col2Im ConstantPadNd Cumsum Diagonal Embedding Expand Flip
    FractionalMaxPool2D FractionalMaxPool3D Gather Hardshrink Hardsigmoid Hardtanh Im2Col Index IndexSelect
    LeakyRelu MaskedFill Max MaxPool2DWithIndices MaxPool3DWithIndices Maximum Mean Median Min Minimum
    MkldnnAdaptiveAvgPool2D MkldnnMaxPool2D NativeDropout Neg Permute PixelShuffle PixelUnshuffle ReflectionPad1D
    ReflectionPad2D ReflectionPad3D Relu Repeat ReplicationPad1D ReplicationPad2D ReplicationPad3D ReshapeAlias Roll
    Rsub Select Slice Softshrink Sort Split SplitWithSizes Squeeze Stack Sub Sum T Threshold ToCopy Topk Transpose
    Tril Triu Unbind Unfold UnsafeSplit UnsafeView Unsqueeze UpsampleBicubic2D UpsampleBilinear2D UpsampleLinear1D
    UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D UpsampleNearestExact1D UpsampleNearestExact2D
    UpsampleNearestExact3D UpsampleTrilinear3D View Where
    """
)

# Linear or piecewise linear in each operand, the others held fixed.
_MULTILINEAR = _words(
    """
    Addbmm Addcmul Addmm Addmv Addr Baddbmm Bmm Convolution ConvolutionOverrideable CudnnConvolution
    CudnnConvolutionTranspose Dot Lerp Linear MiopenConvolution MkldnnConvolution MkldnnLinear Mm Mul Mv PreluKernel
    Prelu SlowConv3D ThnnConv2D Trilinear
    """
)

# Multilinear in evaluation mode; else curved in the first operand, like the norms below.
_BATCH_NORMS = frozenset(["NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"])

# Curved in one operand, whose place is given, and linear in the others.
_CURVED_IN = {"NativeLayerNorm": 0, "NativeGroupNorm": 0, "FusedRmsNorm": 0, "Div": 1}


@dataclass(frozen=True)
class Linearity:
    """What the graph tells of the parameters.

    Attributes:
        reached: Names of the parameters that the outputs depend on.
        curved: Those of them in which the outputs may be other than piecewise linear.
    """

    reached: frozenset[str]
    curved: frozenset[str]


def linearity(outputs: Sequence[Tensor], parameters: Mapping[str, nn.Parameter]) -> Linearity:
    """Find the parameters in which ``outputs`` are piecewise linear, each taken by itself.

    Parameters that one tensor is shared by, modules that are called twice and functional calls need no care: the graph
    has them as they are. Operations that are not known count as curved.

    Args:
        outputs: Tensors with their graph.
        parameters: The parameters in question, by name.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Tanh(), torch.nn.Linear(1, 1))
        >>> sorted(linearity([net(torch.ones(1, 1))], dict(net.named_parameters())).curved)
        ['0.bias', '0.weight']
    """
    nodes = inputs_first(outputs)
    places = leaves(nodes, parameters)
    bits = {name: 1 << position for position, name in enumerate(parameters)}
    reach: dict[Node, int] = {}
    curved = total = 0
    for node in nodes:
        if node in places:
            reach[node] = bits[places[node]]
        else:
            operands = [reach[following] if following else 0 for following, _ in node.next_functions]
            curved |= _curved(node, operands)
            reach[node] = _union(operands)
        total |= reach[node]
    return Linearity(_names(bits, total), _names(bits, curved))


def bypassing(loss: Tensor, outputs: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the parameters that ``loss`` depends on other than through ``outputs``, such as by a penalty.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> z = 2 * w
        >>> bypassing(z.exp().sum(), [z], {"w": w}), bypassing((z + w).sum(), [z], {"w": w})
        (frozenset(), frozenset({'w'}))
    """
    stops = {(z.grad_fn, z.output_nr) for z in outputs}
    ahead, seen = [(loss.grad_fn, loss.output_nr)], set()
    while ahead:
        place = ahead.pop()
        if place[0] is None or place in seen or place in stops:
            continue
        seen.add(place)
        ahead += place[0].next_functions
    return frozenset(leaves([node for node, _ in seen], parameters).values())


def _curved(node: Node, operands: list[int]) -> int:
    """Return the parameters in which this node is curved, given those that each operand depends on."""
    name = kind(node)
    if name in _LINEAR:
        return 0
    if name in _BATCH_NORMS:
        name = "NativeLayerNorm" if saved(node, "training") is not False else "Mul"
    if name in _CURVED_IN:
        return operands[_CURVED_IN[name]] | _shared(operands)
    return _shared(operands) if name in _MULTILINEAR else _union(operands)


def _shared(operands: list[int]) -> int:
    """Return what stands in two operands or more."""
    once = twice = 0
    for operand in operands:
        twice |= once & operand
        once |= operand
    return twice


def _union(operands: list[int]) -> int:
    total = 0
    for operand in operands:
        total |= operand
    return total


def _names(bits: Mapping[str, int], mask: int) -> frozenset[str]:
    return frozenset(name for name, bit in bits.items() if bit & mask)

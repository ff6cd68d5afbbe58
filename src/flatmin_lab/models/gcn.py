"""Graph convolutional networks.

- Kipf and Welling. Semi-supervised classification with graph convolutional networks. arXiv:1609.02907.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class GCN(nn.Module):
    r"""Two graph convolutions over one-hot degrees, a mean over each graph's nodes, and a linear layer.

    .. math:: H_1 = \phi(\mathrm{BN}(\hat A X W_1)), \quad H_2 = \phi(\mathrm{BN}(\hat A H_1 W_2)), \quad
        z_g = W_3 \frac1{|g|} \sum_{i \in g} H_{2,i} + b

    with X the one-hot degrees of the nodes, so that X W₁ looks rows of W₁ up: ``conv1`` is a table with a row a degree.
    Batch-norm has the shifts, so that convolutions have none.

    Args:
        max_degree: Nodes of this degree and above share a row.
        width: Of the hidden layers.
        classes: Outputs.
        activation: φ.

    Example:
        >>> GCN(4, width=8)(torch.tensor([1, 9, 0]), [torch.full((2, 2), 0.5), torch.eye(1)]).shape      # two graphs
        torch.Size([2, 3])
    """

    def __init__(
        self, max_degree: int = 491, *, width: int = 128, classes: int = 3, activation: type[nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.max_degree = max_degree
        self.conv1 = nn.Embedding(max_degree + 1, width)
        nn.init.uniform_(self.conv1.weight, -math.sqrt(1 / max_degree), math.sqrt(1 / max_degree))  # as a linear layer
        self.bn1 = nn.BatchNorm1d(width)
        self.activation1 = activation()
        self.conv2 = nn.Linear(width, width, bias=False)
        self.bn2 = nn.BatchNorm1d(width)
        self.activation2 = activation()
        self.head = nn.Linear(width, classes)

    def forward(self, degrees: Tensor, adjacency: Sequence[Tensor]) -> Tensor:
        """Return logits (n, classes) of n graphs.

        Args:
            degrees: Of the N nodes of all graphs, graph after graph, shape (N,).
            adjacency: Of each graph, normalised, with loops; see :func:`~flatmin_lab.data.graphs.batch_of`.
        """
        x = self.conv1(degrees.clamp(max=self.max_degree))
        x = self.activation1(self.bn1(_propagated(adjacency, x)))
        x = self.activation2(self.bn2(_propagated(adjacency, self.conv2(x))))
        return self.head(torch.stack([nodes.mean(dim=0) for nodes in _by_graph(adjacency, x)]))


def _propagated(adjacency: Sequence[Tensor], x: Tensor) -> Tensor:
    return torch.cat([matrix @ nodes for matrix, nodes in zip(adjacency, _by_graph(adjacency, x), strict=True)])


def _by_graph(adjacency: Sequence[Tensor], x: Tensor) -> Sequence[Tensor]:
    return x.split([len(matrix) for matrix in adjacency])

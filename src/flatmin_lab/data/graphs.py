"""A COLLAB-like task: the ego networks of authors, to be told apart by their field.

COLLAB (Yanardag and Vishwanathan 2015) holds ego networks of researchers of three fields of physics, cut from the
collaboration networks of the arXiv. Here they are cut anew, from the networks of high-energy physics (phenomenology),
condensed matter and general relativity: the same kind of graphs, not the same graphs.

- Leskovec, Kleinberg, Faloutsos (2007). Graph evolution: densification and shrinking diameters (the networks).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flatmin.checks import whole
from flatmin.errors import DataError
from flatmin_lab.data.archives import member
from flatmin_lab.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ARCHIVE = "graphs.tar.xz"
FIELDS = {"HepPh": "CA-HepPh.txt", "CondMat": "CA-CondMat.txt", "GrQc": "CA-GrQc.txt"}
"""The classes in order, and the file of each one's network."""

LEAST_COLLABORATORS = 15
"""Authors with fewer have no ego network here."""


@dataclass(frozen=True)
class Graph:
    """An undirected graph with a class.

    Attributes:
        num_nodes: Of its nodes, which are numbered from 0.
        edges: Each edge once, shape (2, m).
        label: Its class.
    """

    num_nodes: int
    edges: Tensor
    label: int


def ego_networks(root: Path, per_class: int) -> list[Graph]:
    """Read ego networks of as many authors of each field: the author, the collaborators, and all edges among them.

    Args:
        root: Folder of `ARCHIVE`.
        per_class: Authors of each field; fewer where there are fewer. They are the first of one order that never
            changes.

    Returns:
        The graphs, field after field.

    Raises:
        ArgumentError: ``per_class`` is below 1.
        DataError: The archive is missing, damaged, or holds no networks.
    """
    whole("per_class", per_class, minimum=1, hint="It is the number of graphs of each class.")
    return [
        _ego(author, neighbours, label)
        for label, (field, name) in enumerate(FIELDS.items())
        for neighbours in [_neighbours(member(root, ARCHIVE, name), name)]
        for author in _authors(neighbours, field)[:per_class]
    ]


def batch_of(graphs: Sequence[Graph], dtype: torch.dtype = torch.float64) -> tuple[dict[str, Any], Tensor]:
    r"""Return graphs as inputs of a graph network, and their classes.

    Matrices are dense: among the collaborators of one author about half of all pairs are edges.

    Args:
        graphs: At least one.
        dtype: Of the adjacencies.

    Returns:
        ``degrees`` (N,), the number of neighbours of each of all nodes, graph after graph; ``adjacency``, of each graph
        :math:`\hat A = \tilde D^{-1/2} (A + I) \tilde D^{-1/2}` with :math:`\tilde D` the row sums of A + I (Kipf and
        Welling 2017, equation 2). And the classes (n,).

    Example:
        >>> path = Graph(3, torch.tensor([[0, 1], [1, 2]]), label=2)
        >>> inputs, labels = batch_of([path, Graph(1, torch.zeros(2, 0, dtype=torch.int64), label=0)])
        >>> inputs["degrees"].tolist(), labels.tolist()
        ([1, 2, 1, 0], [2, 0])
        >>> inputs["adjacency"][0][0].square()                                  # 1/2², 1/(2 · 3), 0
        tensor([0.2500, 0.1667, 0.0000], dtype=torch.float64)
    """
    matrices = [_with_loops(graph, dtype) for graph in graphs]
    sums = [matrix.sum(dim=1) for matrix in matrices]
    adjacency = [m * d.rsqrt() * d.rsqrt().unsqueeze(1) for m, d in zip(matrices, sums, strict=True)]
    degrees = torch.cat(sums).to(torch.int64) - 1
    return {"degrees": degrees, "adjacency": adjacency}, torch.tensor([graph.label for graph in graphs])


def _with_loops(graph: Graph, dtype: torch.dtype) -> Tensor:
    matrix = torch.eye(graph.num_nodes, dtype=dtype)
    first, second = graph.edges
    matrix[first, second] = matrix[second, first] = 1
    return matrix


def _neighbours(content: bytes, name: str) -> dict[int, set[int]]:
    """Return the collaborators of each author; an edge counts in both directions, once, and none to oneself."""
    try:
        pairs = np.loadtxt(io.BytesIO(content), dtype=np.int64, comments="#", ndmin=2)
    except ValueError as error:
        raise DataError(f"{name} is no list of edges ({error}). Likely cause: it was edited. Copy it again.") from error
    if pairs.shape[1] != 2:
        raise DataError(f"{name} has {pairs.shape[1]} columns and not 2, so it is no list of edges. Copy it again.")
    found: dict[int, set[int]] = {}
    for a, b in pairs.tolist():
        if a != b:
            found.setdefault(a, set()).add(b)
            found.setdefault(b, set()).add(a)
    return found


def _authors(neighbours: dict[int, set[int]], field: str) -> list[int]:
    """Return the authors with enough collaborators, in the order in which they are taken."""
    active = sorted(author for author, others in neighbours.items() if len(others) >= LEAST_COLLABORATORS)
    order = torch.randperm(len(active), generator=generator(0, f"ego networks: {field}"))
    return [active[i] for i in order.tolist()]


def _ego(author: int, neighbours: dict[int, set[int]], label: int) -> Graph:
    nodes = sorted({author} | neighbours[author])
    number = {node: i for i, node in enumerate(nodes)}
    edges = [(number[a], number[b]) for a in nodes for b in neighbours[a] if a < b and b in number]
    return Graph(len(nodes), torch.tensor(edges).T, label)

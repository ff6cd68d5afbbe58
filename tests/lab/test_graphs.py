"""Ego networks cut from collaboration networks, and the network that reads them, against a dense twin."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from curvature_cases import dense_hessian
from flatmin.curvature import Hessian, trace
from flatmin.errors import ArgumentError, DataError
from flatmin.measures import perturbation_gap
from flatmin_lab.data.graphs import ARCHIVE, Graph, batch_of, ego_networks
from flatmin_lab.models.gcn import GCN
from graph_archives import STAR, archive, small_archive, stars


def test_an_ego_network_is_an_author_the_collaborators_and_all_edges_among_them(tmp_path):
    found = ego_networks(small_archive(tmp_path), per_class=3)
    assert [graph.label for graph in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for graph in found:
        assert graph.num_nodes == STAR + 1
        assert graph.edges.shape == (2, STAR + 2 * graph.label)  # once each, no loop
        degrees = torch.bincount(graph.edges.flatten())
        assert int(degrees.max()) == STAR
        assert not (graph.edges[0] == graph.edges[1]).any()


def test_they_are_the_first_of_one_order(tmp_path):
    one, all_ = ego_networks(small_archive(tmp_path), 1), ego_networks(tmp_path, 99)
    assert (len(one), len(all_)) == (3, 9)
    assert torch.equal(one[1].edges, all_[3].edges)


def some_graphs():
    g = torch.Generator().manual_seed(0)
    made = []
    for label, size in enumerate((4, 6, 3)):
        pairs = torch.combinations(torch.arange(size)).T
        made.append(Graph(size, pairs[:, torch.rand(pairs.shape[1], generator=g) < 0.6], label))
    return made


def dense_twin(model, graph):
    """The formula, graph by graph, with dense matrices and one-hot degrees."""
    A = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    A[graph.edges[0], graph.edges[1]] = A[graph.edges[1], graph.edges[0]] = 1
    X = functional.one_hot(A.sum(1).long().clamp(max=model.max_degree), model.max_degree + 1).double()
    loops = A + torch.eye(len(A))
    D = loops.sum(1).rsqrt().diag()
    A_hat = D @ loops @ D
    H1 = model.activation1(model.bn1(A_hat @ X @ model.conv1.weight))
    H2 = model.activation2(model.bn2(A_hat @ H1 @ model.conv2.weight.T))
    return model.head.weight @ H2.mean(0) + model.head.bias


def network(activation=nn.Tanh):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GCN(4, width=5, activation=activation).double()
        for module in (model.bn1, model.bn2):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_the_network_is_its_dense_twin(activation):
    model, several = network(activation), some_graphs()
    inputs, labels = batch_of(several)
    expected = torch.stack([dense_twin(model, graph) for graph in several])
    torch.testing.assert_close(model(**inputs), expected)
    assert labels.tolist() == [0, 1, 2]


def test_degrees_beyond_the_last_share_a_row():
    model = network()
    A = [torch.eye(1, dtype=torch.float64)]
    assert torch.equal(model(torch.tensor([4]), A), model(torch.tensor([400]), A))
    assert not torch.equal(model(torch.tensor([4]), A), model(torch.tensor([3]), A))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_its_curvature_is_that_of_the_dense_twin(activation):
    """Nodes are not examples: whatever way to the trace is chosen has to know."""
    model, several = network(activation), some_graphs()
    for parameter in (*model.bn1.parameters(), *model.bn2.parameters(), model.head.bias):
        parameter.requires_grad_(requires_grad=False)

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, _):
            return torch.stack([dense_twin(model, graph) for graph in several])

    inputs, labels = batch_of(several)
    batches = [(inputs, labels)]
    exact = float(dense_hessian(Twin(), functional.cross_entropy, [(labels, labels)]).trace())
    estimate = trace(Hessian(model, functional.cross_entropy, batches), num_matvecs=400)
    assert abs(estimate.value - exact) < 4 * estimate.stderr + 1e-9 * exact
    if activation is nn.Tanh:
        smoothed = perturbation_gap(model, functional.cross_entropy, batches, sigma=1e-3, num_samples=200).trace
        assert abs(smoothed.value - exact) < 4 * smoothed.stderr


def test_what_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"graphs\.tar\.xz is missing"):
        ego_networks(tmp_path, 1)
    with pytest.raises(ArgumentError, match="per_class is 0"):
        ego_networks(tmp_path, 0)
    (tmp_path / ARCHIVE).write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"graphs\.tar\.xz cannot be read.*damaged"):
        ego_networks(tmp_path, 1)
    archive(tmp_path, {"CA-HepTh.txt": stars(1)})
    with pytest.raises(DataError, match=r"holds no CA-HepPh\.txt"):
        ego_networks(tmp_path, 1)
    archive(tmp_path, {"CA-HepPh.txt": ["one\ttwo"]})
    with pytest.raises(DataError, match=r"CA-HepPh\.txt is no list of edges.*Copy it again"):
        ego_networks(tmp_path, 1)
    archive(tmp_path, {"CA-HepPh.txt": ["1\t2\t3"]})
    with pytest.raises(DataError, match=r"CA-HepPh\.txt has 3 columns and not 2"):
        ego_networks(tmp_path, 1)

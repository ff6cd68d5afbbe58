"""Products against those of curvlinops 3.0.1 (Dangel et al.), an implementation that shares no line with this one.

curvlinops cannot be among the development tools: it requires backpack, which requires torchvision, whose wheel breaks
transformers beside a CPU build of torch. Its products are therefore stored (``curvlinops.json``), and are compared live
where it is installed::

    pip install --no-deps curvlinops-for-pytorch==3.0.1 backpack-for-pytorch einops einconv unfoldNd linear_operator \
        opt_einsum tqdm
    python tests/curvature/test_curvlinops.py      # writes curvlinops.json again
"""

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from curvature_cases import case
from flatmin.curvature.operators import GGN, EmpiricalFisher, Hessian
from flatmin.curvature.trace import trace

STORED = Path(__file__).with_name("curvlinops.json")
KINDS = {"HessianLinearOperator": Hessian, "GGNLinearOperator": GGN, "EFLinearOperator": EmpiricalFisher}
NAMES = ["tanh", "gelu", "relu", "ragged", "regression", "conv, batch-norm, dropout", "tied", "frozen"]


def problem(name):
    model, _, batches = case(name)
    loss = nn.MSELoss() if name == "regression" else nn.CrossEntropyLoss()
    return model.eval(), loss, batches


def factor(kind, name):
    """Of our product to theirs.

    Of a squared error that is the mean over C outputs they take C times the mean of the outer products of ∇ℓ_n: the
    outer products for the sum over outputs, C² as large, are divided by N C as the loss is.
    """
    return 1 / 3 if (kind, name) == ("EFLinearOperator", "regression") else 1.0


def vector(d):
    return torch.linspace(-1, 1, d, dtype=torch.float64).cos() * torch.linspace(0, 9, d, dtype=torch.float64).sin()


def theirs(kind, name):
    curvlinops = pytest.importorskip("curvlinops")
    model, loss, batches = problem(name)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.random.fork_rng(), warnings.catch_warnings():  # it advances the global generator
        warnings.simplefilter("ignore")
        operator = getattr(curvlinops, kind)(model, loss, parameters, batches, check_deterministic=False)
        return operator @ vector(operator.shape[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_stored_products(kind, name):
    operator = KINDS[kind](*problem(name))
    expected = torch.tensor(json.loads(STORED.read_text())[kind][name], dtype=torch.float64)
    ours = operator @ vector(operator.shape[0])
    torch.testing.assert_close(ours, factor(kind, name) * expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_live_products(kind, name):
    expected = theirs(kind, name)
    operator = KINDS[kind](*problem(name))
    ours = operator @ vector(operator.shape[0])
    torch.testing.assert_close(ours, factor(kind, name) * expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["tanh", "ragged"])
def test_traces_of_their_operator(name):
    """Estimators ask for shape, dtype, device and @ alone, so that another library's operator will do."""
    curvlinops = pytest.importorskip("curvlinops")
    model, loss, batches = problem(name)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = curvlinops.HessianLinearOperator(
            model, loss, list(model.parameters()), batches, check_deterministic=False
        )

        class Theirs:
            shape, dtype, device = operator.shape, torch.float64, torch.device("cpu")

            def __matmul__(self, block):
                return operator @ block

        options = {"num_matvecs": 20, "method": "hutchinson", "seed": 3}
        assert trace(Theirs(), **options).value == pytest.approx(trace(Hessian(model, loss, batches), **options).value)


if __name__ == "__main__":
    products = {kind: {name: [float(f"{x:.12g}") for x in theirs(kind, name)] for name in NAMES} for kind in KINDS}
    STORED.write_text(json.dumps(products, indent=None, separators=(",", ":")) + "\n")

"""What is true: traces, eigenvalues, and products that the error of an estimator can be studied on without new ones.

Nothing here is flatmin's: products come from two calls of ``torch.autograd.grad``, exact traces from per-example
Jacobians.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.func import functional_call, vjp, vmap

from curvature.problems import Problem

Product = Callable[[Tensor], Tensor]
DENSE = 5000  # dimensions up to which the Hessian is formed


def products(problem: Problem) -> Product:
    """Return what multiplies a vector (d,) by the Hessian; the graph of the gradient is built once."""
    parameters = problem.parameters
    gradients = torch.autograd.grad(problem.loss(), parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradients])

    def product(vector: Tensor) -> Tensor:
        images = torch.autograd.grad(flat, parameters, vector, retain_graph=True)
        return torch.cat([image.reshape(-1) for image in images])

    return product


def dense(problem: Problem) -> Tensor:
    """Return the Hessian (d, d) of a small problem: that of the function as float32 evaluates it, held in float64.

    In float64 a few units of a ReLU network come to lie on the other side of their kinks.
    """
    product = products(problem)
    H = torch.stack([product(row) for row in torch.eye(problem.dimension)]).double()
    return (H + H.T) / 2


def gauss_newton_trace(problem: Problem, chunk: int = 8) -> float:
    r"""Return the exact trace of the GGN of softmax cross-entropy, from the Jacobian of every example by itself.

    .. math:: \operatorname{tr} G = \frac1N \sum_n \sum_c p_{nc} \| J_n^\top (e_c - p_n) \|^2
    """
    inputs, _ = problem.batch
    state = {name: p.detach() for name, p in problem.model.named_parameters()}
    state |= dict(problem.model.named_buffers())
    names = [name for name, p in problem.model.named_parameters() if p.requires_grad]

    def of_example(example: Tensor) -> Tensor:
        def logits(trained: dict[str, Tensor]) -> Tensor:
            return functional_call(problem.model, state | trained, (example[None],))[0]

        z, pull = vjp(logits, {name: state[name] for name in names})
        p = z.softmax(dim=0)
        total = z.new_zeros(())
        for c in range(len(z)):
            (jacobian,) = pull(torch.eye(len(z))[c] - p)
            total = total + p[c] * sum((j.double() ** 2).sum() for j in jacobian.values())
        return total

    with torch.no_grad():
        return float(sum(vmap(of_example)(part).double().sum() for part in inputs.split(chunk))) / len(inputs)


def long_run(file: Path, problem: Problem, count: int, lock: AbstractContextManager) -> tuple[float, float]:
    """Return the mean of z'Hz over ``count`` Rademacher probes, and its standard error; kept in ``file``."""
    forms = torch.load(file, weights_only=True) if file.exists() else torch.empty(0, dtype=torch.float64)
    product = products(problem) if len(forms) < count else None
    while product is not None and len(forms) < count:
        with lock:
            z = _signs(problem.dimension, 10**6 + len(forms))
            forms = torch.cat([forms, torch.dot(z.double(), product(z).double())[None]])
        if len(forms) % 100 == 0:
            torch.save(forms, file)
    return float(forms.mean()), float(forms.std()) / len(forms) ** 0.5


def _signs(dimension: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (dimension,), generator=generator, dtype=torch.int8).float() * 2 - 1


def top(file: Path, problem: Problem, k: int) -> tuple[Tensor, Tensor]:
    """Return the k eigenvalues of largest magnitude by ARPACK to 1e-5, and their residuals; kept in ``file``."""
    if not file.exists():
        product = products(problem)
        d = problem.dimension
        multiply = lambda v: product(torch.from_numpy(v.reshape(-1))).numpy()  # noqa: E731
        operator = LinearOperator((d, d), matvec=multiply, dtype=np.float32)
        start = np.random.default_rng(0).standard_normal(d, dtype=np.float32)
        values, vectors = eigsh(operator, k=k, which="LM", ncv=40, tol=1e-5, v0=start)
        residuals = [float(np.linalg.norm(multiply(v) - w * v)) for w, v in zip(values, vectors.T.copy(), strict=True)]
        pairs = torch.tensor([values.tolist(), residuals], dtype=torch.float64)
        torch.save(pairs[:, pairs[0].abs().argsort(descending=True)], file)
    return tuple(torch.load(file, weights_only=True))


@dataclass
class Pool:
    """Rademacher probes z with H z and H H z, rows of (n, d): all that Hutch++ and XTrace need for any draw of them.

    Both multiply random probes, and then an orthonormal basis of their images, which lies in the span of the images.
    So their products are linear combinations of these, and errors can be studied over many draws at no new product.
    """

    probes: Tensor
    images: Tensor
    second: Tensor

    def __len__(self) -> int:
        return len(self.probes)

    @classmethod
    def at(cls, file: Path, problem: Problem, count: int, lock: AbstractContextManager) -> Pool:
        """Read the pool from ``file``; compute and store what is missing to ``count`` probes."""
        empty = torch.empty(0, problem.dimension)
        pool = cls(**torch.load(file, weights_only=True)) if file.exists() else cls(empty, empty, empty)
        if len(pool) >= count:
            return pool
        product = products(problem)
        while len(pool) < count:
            z = _signs(problem.dimension, len(pool))
            with lock:
                image = product(z)
                pool = pool._with(z, image, product(image))
            if len(pool) % 12 == 0 or len(pool) == count:
                torch.save(vars(pool), file)
        return pool

    def _with(self, *rows: Tensor) -> Pool:
        old = (self.probes, self.images, self.second)
        return Pool(*(torch.cat([column, row[None]]) for column, row in zip(old, rows, strict=True)))


class PoolOperator:
    """The Hessian on the span of a pool's probes and their images: ``@`` in terms of products that are known.

    Looks like a matrix to the peers' estimators.

    Args:
        pool: The pool.
    """

    def __init__(self, pool: Pool) -> None:
        self._basis = torch.cat([pool.probes, pool.images])
        self._images = torch.cat([pool.images, pool.second])
        self._scale = self._basis.norm(dim=1).double()
        basis = self._basis
        gram = (basis @ basis.T).double() / self._scale.outer(self._scale)
        values, vectors = torch.linalg.eigh(gram)
        kept = values > 1e-9 * values.max()
        self._inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
        d = basis.shape[1]
        self.shape, self.dtype, self.device = (d, d), basis.dtype, basis.device

    @property
    def ndim(self) -> int:
        """Two, as of a matrix."""
        return 2

    def __matmul__(self, x: Tensor) -> Tensor:
        columns = x.reshape(len(x), -1)
        against = (self._basis @ columns).double() / self._scale[:, None]
        coefficients = (self._inverse @ against) / self._scale[:, None]
        return (self._images.T @ coefficients.float()).reshape(x.shape)

"""An estimator applied to every layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from flatmin.curvature.layerwise.groups import Groups, grouped
from flatmin.curvature.layerwise.results import Layer, LayerwiseResult
from flatmin.curvature.layerwise.traces import block_traces
from flatmin.curvature.normalized import normalized_trace
from flatmin.curvature.operators import Operator
from flatmin.curvature.results import EigenPairs, Estimate
from flatmin.curvature.trace import trace
from flatmin.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from collections.abc import Callable

_OPTIONS = ("num_matvecs", "rtol", "atol", "control_variate", "seed")


def layerwise(
    estimator: Callable[..., Any], operator: Operator, *, groups: Groups = "module", **options: Any
) -> LayerwiseResult:
    r"""Apply an estimator to every layer's diagonal block: one row a layer.

    **Traces** (``trace``, ``normalized_trace``) of all blocks come out of one pass and add up to the whole:

    - For a :class:`Hessian` or a :class:`GGN` the Gauss-Newton part is computed exactly where the model allows it; of a
      piecewise-linear network nothing else is left. What is left is sampled.
    - One product Hz with random signs z serves all blocks, since E z_b·(Hz)_b = tr H_bb for each of them.
    - With ``rtol`` or ``atol`` blocks that are known well enough are settled, and the rest gets probes of its own:
      a small block's trace drowns in what z brings in from large ones.
    - The errors of shares follow from the covariance of all blocks (delta method): for t = Σ t_b,
      Var(t_b/t) ≈ (Var t_b - 2 (t_b/t) Cov(t_b, t) + (t_b/t)² Var t) / t².

    The mean eigenvalue of each layer, ``layerwise(normalized_trace, H)``, is the sensitivity by which HAWQ-v2 assigns
    bits to layers (Dong et al. 2020).

    **Any other estimator** is called with ``operator.block(...)`` of each layer in turn: ``top_eigenvalues``,
    ``frobenius_norm``, ``diagonal``, or a function of your own that takes an operator, such as
    ``lambda A: trace(A, method="xtrace")``. A product with a block costs what one with the whole operator does.

    Args:
        estimator: ``trace``, ``normalized_trace``, or any function of an operator and options.
        operator: On named parameters: :class:`Hessian`, :class:`GGN`, sums of them, ...
        groups: ``"module"``: one layer a module (names up to the last dot); ``"parameter"``: one a parameter; or a
            mapping of layer names to patterns of parameter names, ``{"stem": "conv1.*", "head": ["fc.*", "norm.*"]}``,
            parameters that fit none being a last layer ``"rest"``.
        **options: For traces ``num_matvecs`` (default 100, with a tolerance at most 10,000), ``rtol`` and ``atol``
            (standard error of every block, relative to its own value and in its unit; the larger counts),
            ``control_variate`` (True demands the exact Gauss-Newton part, False samples it) and ``seed``. Otherwise
            those of the estimator.

    Returns:
        A row a layer, in the order of the parameters.

    Raises:
        ArgumentError: Groups or options do not fit.
        ArgumentTypeError: The operator has no named parameters, or an argument is of the wrong kind.
        NonFiniteError: A product is not finite.

    Example:
        >>> import torch
        >>> from flatmin.curvature import Hessian, trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
        >>> _ = [torch.nn.init.ones_(p) for p in model.parameters()]
        >>> H = Hessian(model, torch.nn.functional.mse_loss, [(torch.ones(3, 2), torch.zeros(3, 1))])
        >>> print(layerwise(trace, H))
        layer  size   trace          share
        0         4   8 ± 0  33.3333 ± 0 %
        1         2  16 ± 0  66.6667 ± 0 %
        whole     6  24 ± 0
        0 matvecs = ... gradients
    """
    if not callable(estimator):
        raise ArgumentTypeError(f"estimator is {estimator!r}, but a function is needed, such as trace.")
    if not isinstance(operator, Operator):
        raise ArgumentTypeError(
            f"the operator is a {type(operator).__name__} without named parameters, so it has no layers. Pass "
            "Hessian(model, loss_fn, batches) or another operator on a model."
        )
    layers = grouped(operator.layout, groups)
    if estimator is trace or estimator is normalized_trace:
        return block_traces(operator, layers, normalized=estimator is normalized_trace, **_known(estimator, options))
    return _one_by_one(estimator, operator, layers, options)


def _known(estimator: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    for name in options:
        if name not in _OPTIONS:
            raise ArgumentError(
                f"{name!r} is no option of the traces of all layers, which come out of one pass and take "
                f"{', '.join(_OPTIONS)}. For each layer's trace by itself write "
                f"layerwise(lambda A: {estimator.__name__}(A, {name}=...), operator)."
            )
    return options


def _one_by_one(
    estimator: Callable[..., Any], operator: Operator, layers: dict[str, tuple[str, ...]], options: dict[str, Any]
) -> LayerwiseResult:
    before = operator.gradients
    rows: list[Layer] = []
    with operator.session():
        for name, parameters in layers.items():
            block = operator.block(*parameters)
            try:
                estimate = estimator(block, **options)
            except Exception as error:
                error.add_note(f"in layer {name!r}, whose block has dimension {block.shape[0]}")
                raise
            value, stderr = _headline(estimate)
            rows.append(
                Layer(
                    name=name, parameters=parameters, size=block.shape[0], value=value, stderr=stderr, estimate=estimate
                )
            )
    return LayerwiseResult(
        quantity=getattr(estimator, "__name__", type(estimator).__name__),
        layers=tuple(rows),
        num_matvecs=sum(getattr(row.estimate, "num_matvecs", 0) for row in rows),
        gradients=operator.gradients - before,
        seed=next((seed for row in rows if (seed := getattr(row.estimate, "seed", None)) is not None), None),
        route=operator.route,
        converged=all(getattr(row.estimate, "converged", True) for row in rows),
    )


def _headline(estimate: Any) -> tuple[float, float]:
    """Return the number that stands for a result in the table, and its error."""
    if isinstance(estimate, Estimate):
        return estimate.value, estimate.stderr
    if isinstance(estimate, EigenPairs):
        return float(estimate.values[0]), float(estimate.residuals[0])
    return (float(estimate), math.nan) if isinstance(estimate, int | float) else (math.nan, math.nan)

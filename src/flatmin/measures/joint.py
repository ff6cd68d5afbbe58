"""Everything that is measured of a minimum in one call, sharing what can be shared, and going on where it stopped."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from flatmin.checks import choice, positive, whole
from flatmin.curvature.density import spectral_density
from flatmin.curvature.eigenvalues import top_eigenvalues
from flatmin.curvature.layerwise import layerwise
from flatmin.curvature.operators import Hessian
from flatmin.curvature.results import TraceEstimate
from flatmin.curvature.trace import trace as trace_of
from flatmin.curvature.trace.plan import LEAST
from flatmin.errors import ArgumentTypeError
from flatmin.measures.gap import perturbation_gap
from flatmin.measures.measurement import Measurement
from flatmin.measures.parts import Progress, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

    from flatmin.curvature.data import LossFunction
    from flatmin.curvature.layerwise import LayerwiseResult
    from flatmin.curvature.observe import Mode
    from flatmin.curvature.results import EigenPairs

_GAP_SAMPLES = 100
_DENSITY = {"num_probes": 6, "num_matvecs": 96}  # 16 steps each: the outliers are known from elsewhere
_LAYER_PROBES = 32  # fewer do not know their own error


def measure(
    model: nn.Module | Callable[..., Any],
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    trace: bool | Mapping[str, Any] = True,
    eigenvalues: int = 5,
    density: bool | Mapping[str, Any] = True,
    layers: bool = True,
    gap: float | None = None,
    rtol: float = 0.02,
    max_matvecs: int = 1000,
    seed: int = 0,
    mode: Mode = "eval",
    parameters: Mapping[str, Tensor] | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
    store: MutableMapping[str, Any] | None = None,
) -> Measurement:
    """Measure trace, eigenvalues, spectral density, layer shares and gap at once.

    What is shared: the graphs of the batches, which are kept for all parts; what the layers' traces are made of, which
    are summed up where that gives the trace to ``rtol`` (exactly, for piecewise-linear networks); and where the trace
    takes a Krylov space of its own, the eigenvalues that come out of it. The density takes the eigenvalues as known and
    spends its products on the rest of the spectrum.

    With a ``store`` what was computed is kept in it, every part when it is done and every product before: interrupted
    and called again with the same settings, weights and data, it goes on where it was and gives the same numbers (where
    differences take the place of products, up to their error).

    Args:
        model: The model, or a function of (parameters, inputs).
        loss_fn: ``loss_fn(model(inputs), targets)``, or ``loss_fn(output, batch)`` for batches that are mappings; the
            mean over the examples of the batch.
        batches: A ``DataLoader``, a list, or another re-iterable of (inputs, targets) or of mappings.
        trace: Whether to measure the trace; or options of :func:`~flatmin.curvature.trace` instead of True.
        eigenvalues: How many of the largest magnitude; 0 for none.
        density: Whether to measure the density, by six probes of 16 products, the dearest part; or options of
            ``spectral_density`` instead of True.
        layers: Whether to measure the trace of each parameter's block.
        gap: Standard deviation σ of the noise whose gap is measured, in units of the weights; None for no gap.
        rtol: Relative standard error of the trace to reach.
        max_matvecs: The most products for the trace. Where they do not suffice, as for a trace that is nearly zero
            among eigenvalues of both signs, it comes with the error it has and is flagged as not converged.
        seed: Seed of everything random.
        mode: ``"eval"``: every module in evaluation mode; ``"current"``: as it stands.
        parameters: Where to measure, by name, for a model that is a function.
        memory: Bytes for the graphs that are kept; see :class:`~flatmin.curvature.operators.RiskOperator`.
        progress: Told how far each part is.
        store: A mapping to keep things in, such as a dict or one that writes files.

    Returns:
        The numbers, with their errors and what each part cost.

    Raises:
        ArgumentError: An argument is out of range, or no parameter requires gradients.
        ArgumentTypeError: An argument is of the wrong kind.
        DataError: The data are empty, change between passes, or have an unknown form.
        NonFiniteError: A loss, a weight or a product is NaN or infinite.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(3, 1, bias=False)
        >>> found = measure(model, nn.functional.mse_loss, [(torch.eye(3), torch.zeros(3, 1))], eigenvalues=1,
        ...                 density=False)
        >>> round(found.trace.value, 4), [round(x, 4) for x in found.eigenvalues.values.tolist()]
        (2.0, [0.6667])
    """
    whole("eigenvalues", eigenvalues, minimum=0, hint="It is the number of eigenvalues; 0 for none.")
    whole("seed", seed, minimum=0, hint="It is the seed of everything random.")
    positive("rtol", rtol, hint="It is the relative standard error of the trace to reach, such as 0.02.")
    whole("max_matvecs", max_matvecs, minimum=2, hint="It is the most products that the trace may take.")
    if gap is not None:
        positive("gap", gap, hint="It is the standard deviation of the noise; None measures no gap.")
    for_trace, for_density = _options("trace", trace, trace_of), _options("density", density, spectral_density)
    _check(layers, progress, store)
    H = Hessian(model, loss_fn, batches, mode=mode, parameters=parameters, memory=memory)
    found: dict[str, Any] = {}
    k = min(eigenvalues, H.shape[0])
    with H.session():
        work = Work(H, store, progress)
        if layers:
            settings = {"num_matvecs": _LAYER_PROBES, "seed": seed}
            found["layers"] = work.part("layers", partial(layerwise, trace_of, H), settings)
        if trace:
            known = _sum_of(found["layers"], rtol) if layers and trace is True else None
            settings = {"num_matvecs": max_matvecs, "rtol": rtol, "seed": seed, **for_trace}
            settings = {"k": k if _finds_eigenvalues(settings, k) else 0, **settings}
            found["trace"] = known or work.part("trace", partial(trace_of, H), settings)
        if k:
            known = _first(found["trace"].eigenvalues, k) if trace else None
            found["eigenvalues"] = known or work.part("eigenvalues", partial(top_eigenvalues, H, k), {"seed": seed}, k)
        if density:
            settings = {**_DENSITY, "seed": seed, **for_density}
            compute = partial(spectral_density, H, outliers=found.get("eigenvalues"))
            found["density"] = work.part("density", compute, settings, k)
    if gap is not None:
        settings = {"sigma": gap, "num_samples": _GAP_SAMPLES, "seed": seed, "mode": mode}
        compute = partial(perturbation_gap, H.risk.model, loss_fn, batches)
        found["gap"] = work.part("gap", compute, settings, gradients=(2 * _GAP_SAMPLES + 1) / 3)
    return Measurement(
        loss=work.loss,
        num_examples=H.risk.num_examples or 0,
        num_parameters=H.shape[0],
        spent=work.spent,
        **found,
    )


def _options(name: str, wanted: bool | Mapping[str, Any], function: Callable[..., Any]) -> Mapping[str, Any]:
    if isinstance(wanted, bool):
        return {}
    if not isinstance(wanted, Mapping):
        raise ArgumentTypeError(f"{name} is {wanted!r}, but True, False, or a mapping of options is needed.")
    known = list(inspect.signature(function).parameters)[1:]  # without the operator
    return {choice(f"an option of {name}", option, known): value for option, value in wanted.items()}


def _check(layers: object, progress: object, store: object) -> None:
    if not isinstance(layers, bool):
        raise ArgumentTypeError(f"layers is {layers!r}, but True or False is needed; layerwise(trace, H) has groups.")
    if progress is not None and not callable(progress):
        raise ArgumentTypeError(f"progress is {progress!r}, but a function of (part, done, total) is needed.")
    if store is not None and not isinstance(store, MutableMapping):
        raise ArgumentTypeError(
            f"store is a {type(store).__name__}, but a mapping to keep things in is needed, such as a dict."
        )


def _finds_eigenvalues(settings: Mapping[str, Any], k: int) -> bool:
    """Tell whether a trace with these settings can find ``k`` eigenvalues on its way."""
    return settings.get("method", "auto") in ("auto", "deflated") and settings["num_matvecs"] >= k + LEAST


def _sum_of(layers: LayerwiseResult, rtol: float) -> TraceEstimate | None:
    """Return the trace that the layers add up to, if it is known well enough."""
    whole = layers.whole
    if whole is None or not whole.stderr <= rtol * abs(whole.value):
        return None
    exact = whole.stderr == 0
    rows = [None if layer.estimate is None else layer.estimate.samples for layer in layers]
    lengths = {len(samples) for samples in rows if samples is not None}
    samples = None
    if len(lengths) == 1:  # common probes: what they say of all layers adds up, probe by probe
        samples = sum((torch.as_tensor(s) for s in rows if s is not None), torch.zeros(*lengths, dtype=torch.float64))
        samples += whole.value - samples.mean()
    return TraceEstimate(
        value=whole.value,
        stderr=whole.stderr,
        samples=samples,
        method="exact" if exact else "sum of the layers",
        reason="the network is piecewise linear in each weight tensor" if exact else "the layers' traces add up to it",
        num_matvecs=layers.num_matvecs,
        gradients=layers.gradients,
        seed=layers.seed,
        route=layers.route,
    )


def _first(pairs: EigenPairs | None, k: int) -> EigenPairs | None:
    """Return the first ``k`` pairs, if there are so many."""
    if pairs is None or len(pairs) < k:
        return None
    return replace(
        pairs,
        values=pairs.values[:k],
        vectors=pairs.vectors[:, :k],
        residuals=pairs.residuals[:k],
        errors=pairs.errors[:k],
    )

"""Certified risk over the noise of the posterior: a table for the console, and the figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from rich import box
from rich.table import Table

from flatmin.bounds.certificate import rounded_up
from flatmin_lab.report.style import method_styles
from flatmin_lab.report.svg import RC

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes

    from flatmin_lab.certificate_record import CertificateRecord, CertificateSweep
    from flatmin_lab.report.style import MethodStyle

_COLUMNS: dict[str, Callable[[CertificateRecord], float]] = {
    "certified": lambda r: r.risk,
    "hold-out bound, prior's network": lambda r: r.hold_out,
    "test data, networks drawn": lambda r: r.stochastic_test_error,
    "test data, weights alone": lambda r: r.test_error,
}
_BOUNDS = ("certified", "hold-out bound, prior's network")


def certified_table(sweep: CertificateSweep) -> Table:
    """Return the certificates of a sweep as a table, errors in per cent."""
    table = Table(
        title=f"{sweep.what}, seed {sweep.seed}: error in %",
        box=box.SIMPLE_HEAD,
        caption=summary(sweep),
        caption_justify="left",
        title_justify="left",
    )
    for name in ("σ", *_COLUMNS, "KL"):
        table.add_column(name, justify="right")
    for sigma, record in zip(sweep.sigmas, sweep.records, strict=True):
        table.add_row(f"{sigma:g}", *in_percent(record), f"{record.kl:.3g}")
    return table


def in_percent(record: CertificateRecord) -> list[str]:
    """Return what the table and the figure show of a certificate: bounds rounded upwards, estimates to the nearest."""
    values = {label: 100 * column(record) for label, column in _COLUMNS.items()}
    return [rounded_up(v, decimals=2) if label in _BOUNDS else f"{v:.2f}" for label, v in values.items()]


def summary(sweep: CertificateSweep) -> str:
    """Say what may be read off a sweep."""
    level, each = (min(100 * c, 99.99) for c in (sweep.confidence, sweep.records[0].confidence))
    if len(sweep.records) == 1:
        return f"The certificate holds with {level:g} %."
    return (
        f"A prior and a posterior were trained at each σ. All {len(sweep.records)} certificates hold at once with "
        f"{level:g} %, each having {each:g} %, so the lowest may be taken; the same is true of the hold-out bounds, "
        "which are about the priors' networks. Errors on test data are estimates."
    )


def certified_figure(sweeps: Sequence[CertificateSweep]) -> Figure:
    """Draw certified risk over σ, with the test errors beside it, a panel for each sweep."""
    styles = method_styles(("nso", "spare", "wpsgd", "sgd"))
    with mpl.rc_context(RC):
        figure = Figure(figsize=(4.4 * len(sweeps) + 1.2, 3.7), layout="constrained", facecolor="none")
        panels = figure.subplots(1, len(sweeps), squeeze=False)[0]
        for axes, sweep in zip(panels, sweeps, strict=True):
            _draw(axes, sweep, list(styles.values()))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2 * min(2, len(sweeps)))
    return figure


def _draw(axes: Axes, sweep: CertificateSweep, styles: Sequence[MethodStyle]) -> None:
    for (label, column), style in zip(_COLUMNS.items(), styles, strict=True):
        values = [100 * column(record) for record in sweep.records]
        look = {"color": style.colour.light, "marker": style.marker, "dashes": style.dashes, "markersize": 4.5}
        axes.plot(sweep.sigmas, values, label=label, linewidth=1.3, **look)
    axes.set(xscale="log", yscale="log", xlabel="σ of training and posterior", ylabel="error, %")
    axes.set_title(f"{sweep.what}, n = {sweep.records[0].n:,}")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.grid(visible=True, which="major")

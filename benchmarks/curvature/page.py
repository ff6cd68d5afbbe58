"""Make the page and its plot from the stored results alone: ``python -m curvature.page``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path

from curvature.numbers import Row, Stored, eigenvalue_rows, gradient, ratios, runs_of, trace_rows
from curvature.plot import draw
from curvature.problems import PROBLEMS
from curvature.run import RESULTS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, PLOT = DOCS / "curvature-benchmark.md", DOCS / "curvature-benchmark.png"

INTRODUCTION = """\
# What curvature costs

The trace and the top eigenvalues of a Hessian, measured with flatmin and with PyHessian, curvlinops and
hessian-eigenthings on five trained networks. All figures come from one script, which calls the packages as they are
installed, each in the cheapest of its documented ways. Corrections are welcome.

**G** is the cost of one gradient (forward and backward) of the same data, timed right before and right after each run,
in the same process; the cases take turns. Figures in G therefore hardly depend on what else the machine does.
"""
METHOD = """\
## How it was measured

- **To 2 %.** For plain probes the number is (s / 0.02)² with s the relative deviation of one probe, from
  2 (‖H‖² − Σ Hᵢᵢ²), which is exact on the digits and estimated from stored products elsewhere. For Hutch++ and XTrace
  the root mean square error of curvlinops' own functions is taken after 12, 18, 24, ... products over draws of their
  probes (digits 40; ResNet-20 and GPT-2 6, ResNet-18 4, so the number is known to some 20 %), and the number at which
  it crosses 2 % is interpolated (where marked, extrapolated) on log axes. Elsewhere than on the digits draws
  come from a pool of Rademacher probes z with Hz and HHz, which is all that both methods need. The cost is that number
  times the timed cost of a product in that method, plus what is done once. **The peers are thus told when to stop.**
  flatmin is not: it is called with `rtol=0.02` and includes its own stop rule, pilot and all; its error is that of its
  results over the seeds that were run.
- **True values.** Digits: the Hessian itself, as float32 evaluates it. ResNets: the trace of the Gauss-Newton matrix
  from the Jacobian of each example, which is the Hessian's there. GPT-2: 600 probes. Eigenvalues: ARPACK to 10⁻⁵ on
  products by two calls of `torch.autograd.grad`. None of it is flatmin's.
- **Eigenvalues.** Each tool is run with increasing effort (tolerance or steps) until all five are within 10⁻³ of the
  truth; that run alone counts. flatmin is called with its defaults.
- PyHessian is given all data as one batch and keeps the gradient's graph. curvlinops' data come in batches of 64
  (digits: one) to bound its memory, without its check of determinism. hessian-eigenthings rebuilds the graph.
- Products are counted as the tools count them; two products of different tools may cost differently, which is why G are
  shown.
"""


def main() -> int:
    """Write the page."""
    found = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in PROBLEMS if _exists(name)}
    parts = [INTRODUCTION, _about(found), _summary(found), "![Error against cost](curvature-benchmark.png)\n"]
    parts += [_problem(stored) for stored in found.values()]
    parts += [_memory(found), _shares(found), _defaults(found), METHOD]
    PAGE.write_text("\n".join(part for part in parts if part))
    draw(found, PLOT)
    return 0


def _exists(name: str) -> bool:
    file = RESULTS / f"{name}.json"
    return file.exists() and "runs" in json.loads(file.read_text())


def _about(found: dict[str, Stored]) -> str:
    about = next(iter(found.values()))["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about.items() if name not in {"date", "hardware"})
    loads = [run["load"] for stored in found.values() for runs in runs_of(stored, 1).values() for run in runs]
    load = f"{min(loads):.1f} to {max(loads):.1f}" if loads else "unknown"
    again = "`python -m curvature.run --data FOLDER`, then `python -m curvature.page`"
    return (
        f"Measured on {about['date']} with {versions}; {about['hardware']}. The machine was shared: its load was "
        f"{load} while one thread was timed. Seconds are those of a gradient (median of all timings) times G.\n\n"
        f"Again: {again}, in [an environment of its own](../benchmarks/README.md).\n"
    )


def _summary(found: dict[str, Stored]) -> str:
    head = ["", "flatmin, G", "PyHessian", "cheapest peer", "on two threads", "eigenvalues", "trace and eigenvalues"]
    text = (
        "How many times more a trace to 2 % costs with PyHessian and with the cheapest way of any peer; how many times "
        "more five eigenvalues cost with the cheapest peer; and how many times more the cheapest peer's trace costs "
        "than flatmin's trace and eigenvalues together."
    )
    rows = []
    for stored in found.values():
        one, two = (ratios(trace_rows(stored, count), "auto") if runs_of(stored, count) else {} for count in (1, 2))
        auto = next((row for row in trace_rows(stored, 1) if (row.tool, row.method) == ("flatmin", "auto")), None)
        pairs = ratios(eigenvalue_rows(stored, 1), "top_eigenvalues")
        both = eigenvalue_rows(stored, 1, "both")
        peers = [row.cost for row in trace_rows(stored, 1) if row.tool != "flatmin"]
        rows.append(
            [
                f"{stored['problem']['title']} ({stored['problem']['dimension']:,} parameters)",
                "" if auto is None else _short(auto.cost),
                _times(one.get("PyHessian")),
                _times(one.get("cheapest")),
                " / ".join(_times(two.get(key)) for key in ("PyHessian", "cheapest")) if two else "",
                _times(pairs.get("cheapest")),
                _times(min(peers) / both[0].cost) if both and peers else "",
            ]
        )
    return "\n".join(["## In short", "", text, "", *_table(head, rows), ""])


def _problem(stored: Stored) -> str:
    about, truth = stored["problem"], stored["study"]["truth"]
    stderr = f" ± {truth['stderr']:.2g}" if truth["stderr"] else ""
    values = ", ".join(f"{value:.4g}" for value in truth["eigenvalues"])
    told = (
        f"{about['dimension']:,} parameters, {about['examples']:,} examples, loss {about['loss']:.3g}; trace "
        f"{truth['trace']:.5g}{stderr} ({truth['how']}), eigenvalues {values}."
    )
    lines = [
        f"## {about['title']}",
        "",
        told,
        f"A gradient takes {gradient(stored, 1):.3g} s on one thread"
        + (f", {gradient(stored, 2):.3g} s on two." if runs_of(stored, 2) else "."),
        "",
    ]
    two = {row.tool + row.method: row for row in _both_kinds(stored, 2)} if runs_of(stored, 2) else {}
    for title, rows in (
        ("Trace to 2 %", trace_rows(stored, 1)),
        ("Five eigenvalues", eigenvalue_rows(stored, 1)),
        ("Trace and eigenvalues", eigenvalue_rows(stored, 1, "both")),
    ):
        if not rows:
            continue
        cells = [_cells(row, two.get(row.tool + row.method)) for row in rows]
        head = [f"**{title}**", "products", "G", "seconds", "G, two threads", "relative error", ""]
        lines += [*_table(head, cells), ""]
    return "\n".join(lines)


def _both_kinds(stored: Stored, threads: int) -> list[Row]:
    return [
        *trace_rows(stored, threads),
        *eigenvalue_rows(stored, threads),
        *eigenvalue_rows(stored, threads, "both"),
    ]


def _cells(row: Row, two: Row | None) -> list[str]:
    error = "exact" if row.error < 1e-5 else "not found" if math.isinf(row.error) else f"{row.error:.1e}"
    return [
        f"{row.tool} {row.method}",
        f"{row.products:,.0f}",
        _short(row.cost),
        _short(row.seconds),
        "" if two is None else _short(two.cost),
        error,
        row.note,
    ]


def _memory(found: dict[str, Stored]) -> str:
    measured = {name: stored for name, stored in found.items() if "memory" in stored}
    if not measured:
        return ""
    keys = list(next(iter(measured.values()))["memory"])
    rows = [[key, *(_mebibytes(stored["memory"].get(key)) for stored in measured.values())] for key in keys]
    text = (
        "Peak of the resident memory above what was there before, each in a process of its own, in MiB. `memory` is "
        "the budget for graphs that are kept between products; without it, a quarter of what is free.\n"
    )
    head = ["", *(stored["problem"]["title"] for stored in measured.values())]
    return "\n".join(["## Memory", "", text, *_table(head, rows), ""])


def _shares(found: dict[str, Stored]) -> str:
    rows = []
    for stored in found.values():
        for name, share in stored.get("shares", {}).items():
            parts = [f"{100 * share[key]:.1f} %" for key in ("products", "orthogonalisation", "python")]
            rows.append([f"{stored['problem']['title']}, {name}", f"{share['seconds']:.3g}", *parts])
    if not rows:
        return ""
    text = (
        "Shares of flatmin's time: forward and backward passes and what else torch computes; orthogonalisation and "
        "other work on the basis; Python, which a profiler overstates.\n"
    )
    head = ["", "seconds", "passes", "orthogonalisation", "Python"]
    return "\n".join(["## Where the time goes", "", text, *_table(head, rows), ""])


def _defaults(found: dict[str, Stored]) -> str:
    rows = []
    for stored in found.values():
        rule, truth = stored["study"]["PyHessian stop rule"], stored["study"]["truth"]["trace"]
        run = runs_of(stored, 1).get(("PyHessian", "trace", "default"))
        seen = f"{run[0]['values'][0]:.4g} after {run[0]['products']} for {truth:.4g}" if run else ""
        rows.append([stored["problem"]["title"], f"{rule['probes']:.0f}", f"{100 * rule['error']:.1f} %", seen])
    text = (
        "PyHessian stops when its running mean changes by less than 10⁻³, or after 100 probes. Simulated with normal "
        "samples of the deviation found, and as it came out in one run:\n"
    )
    head = ["", "probes, mean", "error (RMS)", "one run"]
    return "\n".join(["## PyHessian's default stop rule", "", text, *_table(head, rows), ""])


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "| --- |" + " --: |" * (len(head) - 1)]
    return lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{_short(value)}×"


def _mebibytes(value: float | None) -> str:
    return "failed" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    sys.exit(main())

"""The matrix of methods and loops: a pytest plugin that sums up which cells were tested and how it went.

A test of a method (one of tests/methods_table.py) that carries ``@pytest.mark.loop("name", ...)`` belongs to the cells
in the method's row and the columns named; ``method="attach"`` names the row of a test that is of no method. A cell is
green when every test in it has passed. ``make matrix`` runs them all, prints the table and writes docs/matrix.md.
"""

import collections
import os
import platform
from pathlib import Path

import pytest
import torch

from methods_table import METHODS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "matrix.md"
ROWS = (*(str(method) for method in METHODS), "attach")
TABLES = {
    "What a step is": {
        "closure": "`opt.step(closure)` equals the paper's pseudocode, written out, and the pure driver, to 1e-11",
        "probes": "the loop over `opt.probes()` takes the same steps as the closure, bit for bit",
        "lr = 0": "at learning rate 0 the weights stay as they are, bit for bit, in float32 and bfloat16",
        "off": "at radius 0 the run is the base optimizer's, bit for bit, dropout masks and buffers included",
        "exceptions": "an exception at any evaluation puts the weights back, bit for bit, and training goes on",
        "NaN": "NaN or infinity at any evaluation is refused, weights and state as they were",
    },
    "Loops in one process": {
        "accumulation": "micro-batches inside each evaluation equal the big batch, to 1e-11",
        "inside each micro-batch": "the loop over probes inside each micro-batch: the big batch for methods linear in "
        "the gradients, m-sharpness for the others",
        "autocast": "autocast inside or around a step sees every displacement",
        "GradScaler": "equals full precision; an overflow skips the step; also after `unscale_` and clipping",
        "clipping": "norms and values of the final gradient are what is clipped",
        "compile": "`torch.compile`: compiled once, no recompilation, equal to eager",
        "checkpointing": "activation checkpointing gives the same gradients, bit for bit",
        "LBFGS": "a base that evaluates as often as it likes",
    },
    "Parameters": {
        "every kind": "frozen, unused, tied, scalar, empty, sparse, convolution, complex and bfloat16 parameters are "
        "restored bit for bit and trained",
        "sparse": "sparse gradients stay sparse and are those of the dense run",
        "complex": "complex parameters train as the pairs of their real and imaginary parts",
        "groups": "groups have radii of their own; 0 leaves one where it is",
        "added": "a group added later takes part",
        "moved": "parameters moved to another type after construction",
        "dropped layers": "a layer left out of one evaluation is restored",
    },
    "Two ranks": {
        "DDP": "equals one process on the global batch, to 1e-9; the replicas are equal bit for bit",
        "DDP, one all-reduce a step": "every bucket of gradients is averaged once a step (for SAM's family with "
        "`local_ascent=True`)",
        "DDP, no_sync": "micro-batches inside each evaluation, of which the last alone averages",
        "DDP, no_sync around the loop": "whole loops over probes of which the last alone averages",
        "DDP, static graph or unused parameters": "where the averaging cannot be put off, every pass averages",
        "m-sharpness": "with `local_ascent=True` each rank climbs its own gradient",
        "independent noise": '`ranks="independent"` averages over two ranks\' perturbations; replicas stay equal',
        "antithetic noise": '`ranks="antithetic"`: the two points of a pair, each on one rank',
        "FSDP2": "`fully_shard`: equals one process; restored bit for bit, also after an evaluation",
    },
    "Checkpoints": {
        "torch.save": "saved in the middle and loaded with `weights_only=True`, the run goes on bit for bit",
        "safetensors": "with the weights in safetensors",
        "DCP": "through `get_optimizer_state_dict` and `set_optimizer_state_dict`, flat or not",
        "pickle, deepcopy": "copies go on as the original does",
        "resumed on two ranks": "saved and loaded on two ranks, DDP and FSDP2, bit for bit",
        "resumed on one rank": "a checkpoint of two FSDP2 ranks goes on in one process as one uninterrupted would",
    },
}
COLUMNS = tuple(column for table in TABLES.values() for column in table)


def pytest_configure(config):
    config.pluginmanager.register(Matrix(), "matrix of methods and loops")


def cells(item):
    """Return the cells that a test belongs to."""
    mark = item.get_closest_marker("loop")
    if mark is None:
        return []
    method = item.callspec.params["method"] if "method" not in mark.kwargs else mark.kwargs["method"]
    unknown = set(mark.args) - set(COLUMNS)
    if unknown or str(method) not in ROWS:
        raise pytest.UsageError(f"{item.nodeid}: no such cell: {method}, {sorted(unknown) or mark.args}")
    return [(str(method), column) for column in mark.args]


class Matrix:
    def __init__(self):
        self.passed, self.failed = collections.Counter(), collections.Counter()

    def pytest_collection_modifyitems(self, items):
        for item in items:
            item.user_properties.append(("cells", cells(item)))

    def pytest_runtest_logreport(self, report):
        done = report.when == "call" or (report.when == "setup" and not report.passed)
        for row, column in dict(report.user_properties).get("cells", ()) if done else ():
            (self.passed if report.passed else self.failed)[row, column] += 1

    def sign(self, cell):
        """Return a cell as text: how many tests passed, how many failed, or that there is none."""
        if self.failed[cell]:
            return f"✗ {self.failed[cell]} of {self.failed[cell] + self.passed[cell]}"
        return f"✓ {self.passed[cell]}" if self.passed[cell] else "·"

    def table(self, columns):
        lines = [f"| | {' | '.join(columns)} |", f"| --- {'| --- ' * len(columns)}|"]
        lines += [f"| {row} | {' | '.join(self.sign((row, column)) for column in columns)} |" for row in ROWS]
        return "\n".join(lines)

    def pytest_terminal_summary(self, terminalreporter):
        for title, columns in TABLES.items():
            terminalreporter.section(title)
            terminalreporter.line(aligned(self.table(columns)))
        if os.environ.get("MATRIX_PAGE") and not self.failed:
            PAGE.write_text(self.page(), encoding="utf-8")
            terminalreporter.line(f"Written to {PAGE}")

    def page(self):
        total = sum(self.passed.values())  # a test in two cells counts twice
        lines = [
            "# Every method in every loop",
            "",
            INTRODUCTION.format(total=total, torch=torch.__version__, python=platform.python_version()),
            "",
        ]
        for title, columns in TABLES.items():
            lines += [f"## {title}", "", self.table(columns), ""]
            lines += [f"- **{column}**: {meaning}" for column, meaning in columns.items()]
            lines.append("")
        lines.append(LEGEND)
        return "\n".join(lines)


INTRODUCTION = """\
Printed and written by `make matrix`. A cell says how many tests of that method in that loop have run and passed; a dot,
that the method has no such option, or, in the row of `attach`, that no test of that loop is written for it. In all
{total} passed, on torch {torch} and Python {python}, two ranks under gloo on a CPU.
[The same loops over other libraries](peers.md)."""

LEGEND = """\
The rows are those of the tests' table of methods: NSO with three signs as noise (k3), with noise relative to the norms
of filters (filter), with a quarter of the clean loss (mixed), and so on. `attach` is NSO's noise by hooks, one point a
micro-batch: it has no closure and no probes, and its tests are of their own.

Refused, with an error that says why and what to do instead: DeepSpeed (its engine keeps the weights that are trained),
gradients that torchao offloads during backward, `static_graph=True` with `no_sync` or m-sharpness, noise that differs
by rank over shards, a closure under accumulation in frameworks that replay the last micro-batch, a closure given to a
`GradScaler`.
"""


def aligned(table):
    """Return a Markdown table with its columns aligned, without the line of dashes."""
    rows = [[field.strip() for field in line.strip("|").split("|")] for line in table.splitlines()]
    rows.pop(1)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f.ljust(w) for f, w in zip(row, widths, strict=True)) for row in rows)

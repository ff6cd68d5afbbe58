"""Write docs/performance.md and its plots from the results in benchmarks/training/results.

Run it after the benchmark: ``python docs/performance.py``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "training" / "results"
PAGE = HERE / "performance.md"
RATIOS, GROWTH = HERE / "performance-ratios.png", HERE / "performance-growth.png"

TITLES = {
    "resnet18": "ResNet-18, 32 pixels, batch 32",
    "gpt2-two-layers": "GPT-2 with two layers, 8 x 128 tokens",
    "resnet34": "ResNet-34, 224 pixels, batch 32",
    "vit-base": "ViT-B/16, 224 pixels, batch 32",
    "gpt2": "GPT-2, 8 x 512 tokens",
}
TARGETS = (  # device, problem, case, ratio
    ("cpu", "resnet18@2", "flatmin NSO, gaussian", 1.10),
    ("cpu", "resnet18@2", "flatmin NSO, gaussian, probes()", 1.10),
    ("cpu", "resnet18@1", "flatmin NSO, rademacher, probes()", 1.10),
    ("cpu", "gpt2-two-layers@1", "flatmin NSO, gaussian, probes()", 1.02),
    ("cpu", "gpt2-two-layers@1", "flatmin NSO, rademacher, probes()", 1.02),
    ("cpu", "resnet18@2", "flatmin attach, gaussian", 1.05),
    ("cpu", "resnet18@1", "flatmin attach, rademacher", 1.05),
    ("cpu", "gpt2-two-layers@1", "flatmin attach, gaussian", 1.05),
    ("cuda", "resnet34", "flatmin NSO, gaussian", 1.02),
    ("cuda", "vit-base", "flatmin NSO, gaussian", 1.02),
    ("cuda", "gpt2", "flatmin NSO, gaussian", 1.02),
)
Stored = dict[str, Any]

_VERSIONS = ("python", "torch", "flatmin", "transformers", "pytorch_optimizer", "ivon-opt")
_INTRO = """\
# What a training step costs

**The limit** of a step with k pairs of points is 2k forward and backward passes at the weights themselves and one step
of the base optimizer; that of `attach`, which spreads a pair over two micro-batches, is one plain step. Everything
above it is overhead: noise, and passes over the weights. Figures are ratios to the limit. Each step is timed right
before or right after its limit, in the same process and in turns with all others, and the median of the ratios is told,
so that figures depend less on what else the machine does. The base optimizer of all is SGD with momentum, the data are
made up. glibc is told to keep what is freed (`MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1`, on Linux): by itself it
gives gradients back to the system after some steps and not after others, and the pages that come anew cost up to a
tenth of a step, of plain SGD as of any method. It is worth setting where one trains on a CPU.
"""
_REPEAT = """\
## Again

```bash
make bench          # a CPU, minutes; benchmarks/training/results/cpu.json, this page and its plots
make bench-gpu      # the same script on a GPU, with CUDA graphs; results/cuda.json
make bench-check    # measures the ratios anew and compares them with the stored ones
```

Ratios are compared, never seconds, and only with those of the same hardware and number of threads. A peer that is not
installed is named and left out: [benchmarks](../benchmarks/README.md) says how to have them.
"""
_BATCHED = """\
`opt.step_batched(network, loss)` evaluates the 2k points of a step of NSO by `torch.func.vmap`; the ratio is to
`opt.step(closure)`, which evaluates them in turn, steps alternating."""
_BOUND = """\
## What bounds it

A draw of n normal numbers is the price of a generator, and is paid once a pair: the mirror image needs none. Each
parameter has a generator of its own, so several threads draw at once and the numbers do not depend on how many there
are; within one parameter, such as a large embedding, numbers come in order, on one thread. What remains are passes over
memory: one copy of the weights, noise added while it is in the cache, and one pass after each of the two gradients that
takes the inner product for the live trace and moves the weights to the mirror image or back. Small images on a large
network are the hardest case: each weight is used for little arithmetic before it is moved.

`noise="rademacher"` draws 64 signs from one random word. It has the covariance of the normal law, which is what the
method's theory asks for, and the lowest variance of the live trace.
"""


def page() -> str:
    """The whole page."""
    found = {device: _read(device) for device in ("cpu", "cuda")}
    parts = [_INTRO]
    for device, stored in found.items():
        if stored:
            parts += [_device(device, stored)]
    if not found["cuda"]:
        parts.append("## On a GPU\n\nNot measured yet: there are no results of `make bench-gpu`.\n")
    parts += [_targets(found), _BOUND, _many_ranks(), _REPEAT]
    return "\n".join(parts)


def _title(key: str) -> str:
    problem, _, threads = key.partition("@")
    return TITLES[problem] + {"": "", "1": ", one thread"}.get(threads, f", {threads} threads")


def _read(device: str) -> Stored:
    file = RESULTS / f"{device}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _device(device: str, stored: Stored) -> str:
    heading = "## On a CPU" if device == "cpu" else "## On a GPU"
    blocks = [heading, ""]
    for stage, title in (("ratios", ""), ("graphs", ", CUDA graphs")):
        for problem, rows in stored.get(stage, {}).items():
            blocks += [_ratio_table(f"{_title(problem)}{title}", rows)]
    if device == "cpu":
        blocks += [f"![Ratios to the limit]({RATIOS.name})", ""]
    blocks += [_share_table(problem, rows) for problem, rows in stored.get("shares", {}).items()]
    blocks += [_memory_table(p, rows, stored) for p, rows in stored.get("memory", {}).items()]
    blocks += _batched(stored)
    blocks += _growth(stored)
    return "\n".join(blocks)


def _made(environment: Stored) -> str:
    versions = ", ".join(f"{name} {environment[name]}" for name in _VERSIONS if name in environment)
    low, high = environment["load"]
    return (
        f"{environment['hardware']}, {_threads(environment)}, {environment['date']}, {versions}. The machine "
        f"was shared: its load was {low:.1f} before and {high:.1f} after."
    )


def _threads(environment: Stored) -> str:
    number = environment["threads"]
    return "one thread" if number == 1 else f"{number} threads"


def _ratio_table(title: str, rows: Stored) -> str:
    lines = [f"### {title}", "", f"{rows['parameters'] / 1e6:.1f} million parameters. {_made(rows['environment'])}", ""]
    lines += ["| | passes | ratio | middle half | a step, ms |", "| --- | --: | --: | --: | --: |"]
    for name, row in rows["cases"].items():
        low, _, high = quantiles(row["ratios"], n=4)
        ratio, milliseconds = median(row["ratios"]), median(row["seconds"]) * 1e3
        lines.append(f"| {name} | {row['passes']} | **{ratio:.2f}** | {low:.2f} to {high:.2f} | {milliseconds:,.0f} |")
    return "\n".join([*lines, ""])


def _share_table(problem: str, rows: Stored) -> str:
    cases = rows["cases"]
    stages = list(dict.fromkeys(s for row in cases.values() for s in row if s not in ("the limit", "the step")))
    lines = [f"### Where it goes: {TITLES[problem]}", "", "Each stage of a step, in per cent of the limit.", ""]
    lines += [f"| | {' | '.join(cases)} |", f"| --- |{' --: |' * len(cases)}"]
    for stage in stages:
        cells = (f"{100 * row.get(stage, 0) / row['the limit']:.1f}" for row in cases.values())
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    cells = (f"**{100 * row['the step'] / row['the limit']:.0f}**" for row in cases.values())
    return "\n".join([*lines, f"| together | {' | '.join(cells)} |", ""])


def _memory_table(problem: str, rows: Stored, stored: Stored) -> str:
    size = next(r["parameters"] for key, r in stored["ratios"].items() if key.startswith(problem)) * 4 / 2**20
    limit = rows["the limit"]
    lines = [f"### Memory: {TITLES[problem]}", ""]
    lines += [
        f"Peak above the network and its data, each in a process of its own; the parameters are {size:.0f} MiB.",
        "",
    ]
    lines += ["| | peak, MiB | above the limit, copies of the parameters |", "| --- | --: | --: |"]
    for name, peak in rows.items():
        if name != "environment":
            lines.append(f"| {name} | {peak:,.0f} | {(peak - limit) / size:+.1f} |")
    return "\n".join([*lines, ""])


def _batched(stored: Stored) -> list[str]:
    blocks = []
    for found in stored.get("batched", {}).values():
        blocks += ["### All points in one pass", "", f"{_BATCHED} {_made(found['environment'])}", ""]
        blocks += ["| network | parameters | k | ratio | middle half | batched, ms | in turn, ms |"]
        blocks += ["| --- | --: | --: | --: | --: | --: | --: |"]
        for row in found["rows"]:
            low, high = row["middle_half"]
            times = " | ".join(f"{row[way] * 1e3:,.1f}" for way in ("batched", "in turn"))
            blocks.append(
                f"| {row['network']} | {row['parameters']:,} | {row['pairs']} | **{row['ratio']:.2f}** | "
                f"{low:.2f} to {high:.2f} | {times} |"
            )
        wins = sum(row["middle_half"][1] < 1 for row in found["rows"])
        losses = sum(row["middle_half"][0] > 1 for row in found["rows"])
        blocks += ["", f"One pass is faster in {wins} of {len(found['rows'])} rows, and slower in {losses}.", ""]
    return blocks


def _growth(stored: Stored) -> list[str]:
    blocks = []
    if "parameters" in stored:
        found = stored["parameters"]["layers"]
        laws = list(found["slopes"])
        blocks += ["### Growth with the parameters", "", "Milliseconds above the limit, layers of 1,024 x 1,024.", ""]
        blocks += [f"| million parameters | {' | '.join(laws)} |", f"| --: |{' --: |' * len(laws)}"]
        for row in found["rows"]:
            cells = " | ".join(f"{row[law]['above'] * 1e3:.1f}" for law in laws)
            blocks.append(f"| {row['parameters'] / 1e6:.1f} | {cells} |")
        cells = " | ".join("" if found["slopes"][law] is None else f"{found['slopes'][law]:.2f}" for law in laws)
        blocks += [f"| slope (logarithms) | {cells} |", ""]
    for found in stored.get("perturbations", {}).values():
        blocks += [f"### Growth with k: {TITLES[found['problem']]}", "", "| k | ratio to its limit | a step, ms |"]
        blocks += ["| --: | --: | --: |"]
        blocks += [f"| {row['k']} | {row['ratio']:.2f} | {row['seconds'] * 1e3:,.0f} |" for row in found["rows"]]
        blocks += ["", f"Slope of the time in k, in logarithms: {found['slopes']['step']:.2f}.", ""]
    for found in stored.get("ranks", {}).values():
        blocks += [f"### Growth with ranks: {TITLES[found['problem']]}", ""]
        text = "DistributedDataParallel, a thread a rank; the limit is two passes of which the last averages gradients"
        blocks += [f"{text}. {found['cores']} cores.", "", "| ranks | ratio | a step, ms |", "| --: | --: | --: |"]
        blocks += [f"| {row['ranks']} | {row['ratio']:.2f} | {row['seconds'] * 1e3:,.0f} |" for row in found["rows"]]
        blocks += [""]
    return [*blocks, f"![Growth]({GROWTH.name})", ""] if "parameters" in stored else blocks


def _targets(found: dict[str, Stored]) -> str:
    lines = [
        "## What was aimed at, and what is reached",
        "",
        "| | | aim | measured | |",
        "| --- | --- | --: | --: | --- |",
    ]
    for device, problem, case, aim in TARGETS:
        row = found[device].get("ratios", {}).get(problem, {}).get("cases", {}).get(case)
        ratio = median(row["ratios"]) if row else math.nan
        verdict = "not measured" if row is None else "reached" if ratio <= aim else "missed"
        measured = "" if row is None else f"{ratio:.2f}"
        lines.append(f"| {_title(problem)} | {case} | {aim:.2f} | {measured} | {verdict} |")
    return "\n".join([*lines, ""])


_BANDWIDTH, _LATENCY, _RANKS = 50e9, 5e-6, 1024  # bytes a second and rank, seconds a message


def _collective(bytes_: float, times: float) -> float:
    """Return the seconds of a collective that moves ``times`` times ``bytes_`` through each rank, in rings."""
    return times * bytes_ * (_RANKS - 1) / _RANKS / _BANDWIDTH + 2 * math.log2(_RANKS) * _LATENCY


def _many_ranks() -> str:
    lines = [f"## On paper: {_RANKS:,} ranks", "", _PAPER, ""]
    lines += ["| parameters | | SGD | NSO | a pass of NSO against one of SGD | what dominates |"]
    lines += ["| --: | --- | --: | --: | --: | --- |"]
    for number, tensors in ((124e6, 148), (7e9, 291)):
        mean, small = _collective(2 * number, 2), _collective(8 * tensors, 2)
        gather = _collective(2 * number, 1)
        rows = (
            ("DistributedDataParallel", mean, mean + 2 * small, "the one averaging of gradients"),
            ("FSDP2", 3 * gather, 6 * gather + small, "gathering weights, twice a pass"),
        )
        for name, sgd, nso, what in rows:
            size = f"{number / 1e9:g} billion" if number >= 1e9 else f"{number / 1e6:g} million"
            lines.append(f"| {size} | {name} | {sgd:.4f} | {nso:.4f} | {nso / 2 / sgd:.2f} | {what} |")
    lines += ["", _DRAWS, ""]
    return "\n".join(lines)


_PAPER = f"""\
Not measured: computed for {_BANDWIDTH / 1e9:.0f} GB/s a rank, {_LATENCY * 1e6:.0f} µs a message, gradients and gathered
weights of 16 bits, and nothing hidden behind arithmetic. Seconds of communication in one step of plain SGD (one pass)
and of NSO with k = 1 (two passes)."""
_DRAWS = """\
Under DistributedDataParallel a pair averages its gradients once, so that a pass of NSO communicates half of what a pass
of SGD does; the live trace adds two averagings of one number for each parameter. Under FSDP2 every pass gathers and
scatters as any other pass. One thing does not shrink with the number of ranks: a shard takes its slice of one global
draw, so that one seed gives one perturbation on any number of ranks, and each rank draws the numbers of all shards."""


def _draw_ratios(stored: Stored) -> None:
    problems = stored["ratios"]
    figure, axes = plt.subplots(
        1, len(problems), figsize=(5.6 * len(problems), 4.2), layout="constrained", squeeze=False
    )
    for axis, (problem, rows) in zip(axes[0], problems.items(), strict=True):
        names = list(rows["cases"])[::-1]
        for place, name in enumerate(names):
            ratios = rows["cases"][name]["ratios"]
            colour = "#d7301f" if name.startswith("flatmin") else "#2b8cbe"
            low, middle, high = quantiles(ratios, n=4)
            axis.plot([low, high], [place, place], color=colour, linewidth=2)
            axis.plot(middle, place, "o", color=colour)
        axis.axvline(1, color="0.6", linewidth=1)
        axis.set(yticks=range(len(names)), xlabel="ratio to the limit")
        axis.set_title(_title(problem), fontsize=9, loc="right")
        axis.set_yticklabels(names, fontsize=8)
    figure.savefig(RATIOS, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _draw_growth(stored: Stored) -> None:
    found = stored["parameters"]["layers"]
    figure, axis = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    sizes = [row["parameters"] / 1e6 for row in found["rows"]]
    for law, slope in found["slopes"].items():
        label = law if slope is None else f"{law}, slope {slope:.2f}"
        axis.plot(sizes, [row[law]["above"] * 1e3 for row in found["rows"]], "o-", label=label)
    axis.set(xscale="log", yscale="log", xlabel="million parameters", ylabel="above the limit, ms")
    axis.legend(frameon=False)
    figure.savefig(GROWTH, dpi=120, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    cpu = _read("cpu")
    if "ratios" in cpu:
        _draw_ratios(cpu)
    if "parameters" in cpu:
        _draw_growth(cpu)
    PAGE.write_text(page())

"""Install what is in dist/ into a clean environment, see what came along, and measure what importing it costs.

    make release-check

The wheel must bring torch, numpy and what these two need, and nothing else; the sdist must build to the same package.
Import times are measured side by side, `import torch` and `import torch, flatmin` in turn, each in a process of its
own; what is printed is the median of the differences. They are told and not judged, since machines differ.
"""

# ruff: noqa: T201  (what it finds is printed)

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

PAIRS = 15
ROOT = Path(__file__).parents[1]

# What is there, and what torch and numpy need, as the metadata in the clean environment have it.
INSTALLED = """
import importlib.metadata as m, json, re
name = lambda text: re.match(r"[A-Za-z0-9._-]+", text)[0].lower().replace("_", "-").replace(".", "-")
needs = lambda d: [name(r) for r in d.requires or [] if "extra ==" not in r]
there = {name(d.metadata["Name"]): needs(d) for d in m.distributions()}
wanted, open_ = set(), ["torch", "numpy"]
while open_:
    if (one := open_.pop()) not in wanted:
        wanted.add(one)
        open_ += there.get(one, [])
print(json.dumps({"extra": sorted(set(there) - wanted - {"flatmin", "pip", "setuptools"}), "all": sorted(there)}))
"""

# The last import is timed inside of the process, so that starting Python and loading torch are no part of it.
TIMED = """
import time, torch
wall, cpu = time.perf_counter(), time.process_time()
{statement}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def run(*command: str | Path) -> str:
    """Run a command to its end and return what it printed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def import_times(python: Path) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds: of processes that import torch and end, and what flatmin adds in wall and in CPU time."""
    run(python, "-I", "-c", "import flatmin")  # whatever is written or read for the first time
    torch_alone, walls, cpus = [], [], []
    for _ in range(PAIRS):
        begin = time.perf_counter()
        run(python, "-I", "-c", "import torch")
        torch_alone.append(1e3 * (time.perf_counter() - begin))
        wall, cpu = map(float, run(python, "-I", "-c", TIMED.format(statement="import flatmin")).split())
        walls.append(1e3 * wall)
        cpus.append(1e3 * cpu)
    return torch_alone, walls, cpus


def main() -> None:
    """Do it, and end with a message where something else came along."""
    (wheel,), (sdist,) = ROOT.glob("dist/flatmin-*.whl"), ROOT.glob("dist/flatmin-*.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        pip = (python, "-m", "pip", "--disable-pip-version-check")
        run(*pip, "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
        run(*pip, "check")
        found = json.loads(run(python, "-I", "-c", INSTALLED))
        print(f"{wheel.name} brought {', '.join(found['all'])}")
        if found["extra"]:
            sys.exit(f"These are needed neither by torch nor by numpy: {', '.join(found['extra'])}")
        times = import_times(python)
        middle, wall, cpu = map(statistics.median, times)
        print(
            f"a process that imports torch: {middle:.0f} ms; flatmin after it: {wall:.0f} ms ({cpu:.0f} ms of CPU time)"
        )
        print(f"of {PAIRS} runs: {min(times[1]):.0f} to {max(times[1]):.0f} ms")
        of_wheel = run(python, "-I", "-c", "import flatmin; print(flatmin.__version__, len(flatmin.__all__))")
        run(*pip, "install", "--quiet", "--no-deps", "--force-reinstall", sdist)
        of_sdist = run(python, "-I", "-c", "import flatmin; print(flatmin.__version__, len(flatmin.__all__))")
        if of_wheel != of_sdist:
            sys.exit(f"The sdist makes another package: {of_sdist.strip()} and not {of_wheel.strip()}")
        print(f"{sdist.name} builds to the same version and public names: {of_sdist.strip()}")


if __name__ == "__main__":
    main()

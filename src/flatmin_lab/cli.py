"""The command ``flatmin``: reads the arguments, does what they say, and ends bad input with one message."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Sequence

BAD_INPUT = 2
"""Exit status where the input or the machine is at fault."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

_DESCRIPTION = """Train into flat minima, measure how flat they are, and compare methods honestly on real data.

Interrupted work is continued by giving the same command again. `flatmin --version` prints the version."""

_KEPT = {
    "certify": "Finished weights are kept; continue with them",
    "landscape": "Finished points are kept; continue with them",
    "measure": "Finished products are kept; continue with them",
    "reproduce": "Nothing was written; begin again",
    "train": "The last checkpoint is kept; continue with it",
}

_EXTRA = {
    *("jinja2", "markdown_it", "matplotlib", "pandas", "pydantic", "rich", "safetensors", "scipy", "sklearn", "tyro"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: What follows ``flatmin``; those of this process if not given.

    Returns:
        The exit status: 0, `BAD_INPUT` or `INTERRUPTED`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without σ shows a question mark, not an error
    try:
        return _run(given)
    except KeyboardInterrupt:
        again = shlex.join(["flatmin", *given])
        kept = _KEPT.get(given[0] if given else "", "Finished runs are kept; continue with them")
        return _end(f"Interrupted. {kept}: {again}", INTERRUPTED)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        return _end(
            f"{package} is not installed, and the command line needs it. Likely cause: flatmin was installed without "
            "its laboratory. Install it: pip install 'flatmin[lab]'",
            BAD_INPUT,
        )


def _run(given: list[str]) -> int:
    if given == ["--version"]:
        import flatmin

        print(flatmin.__version__)  # noqa: T201  (what was asked for)
        return 0

    import tyro

    from flatmin_lab.commands import Command

    command = tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]  (a union of commands is a value that tyro takes)
        prog="flatmin",
        description=_DESCRIPTION,
        args=given,
        config=(tyro.conf.FlagCreatePairsOff,),
    )

    from flatmin.errors import FlatminError  # after parsing: it loads torch, and help must not wait for that

    try:
        command.run()
    except FlatminError as error:
        return _end(str(error), BAD_INPUT)
    return 0


def _end(message: str, status: int) -> int:
    print(f"flatmin: {message}", file=sys.stderr)  # noqa: T201  (plain, so that it is one line wherever it goes)
    return status

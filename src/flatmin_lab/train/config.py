"""What one run is asked to do: a TOML file and flags, merged into one typed value."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from flatmin.checks import choice
from flatmin.errors import ArgumentError
from flatmin_lab.methods import METHODS, method
from flatmin_lab.spec import Arm, Changes, RunSpec, Study, Value
from flatmin_lab.tasks import task

Parallel = Literal["none", "ddp", "fsdp"]
"""How processes share a run: one alone; replicas of the network; shards of the network."""

Track = Literal["trackio", "wandb", "tensorboard"]
"""What is told of a run beside its folder."""

_RADII = ("sigma", "rho", "alpha")


class MethodConfig(Value):
    """The method and its one hyperparameter."""

    name: str = Field(description="one of the methods")
    sigma: float | None = Field(default=None, description="of methods that add noise")
    rho: float | None = Field(default=None, description="of methods that climb")
    alpha: float | None = Field(default=None, description="of label smoothing")


class TrainConfig(Value):
    """One run, and how it is made."""

    task: str = Field(description="one of the tasks")
    method: MethodConfig
    budget: int = Field(default=1200, description="gradient evaluations")
    seed: int = Field(default=0, description="of everything random")
    device: str = Field(default="cpu", description="as torch names it")
    changes: Changes = Changes()
    parallel: Parallel = Field(default="none", description="how the processes that torchrun started share the run")
    measure: bool = Field(default=True, description="whether trace and top eigenvalue are measured after training")
    checkpoint_seconds: float = Field(default=30.0, ge=0, description="between checkpoints; 0 for one after each step")
    track: Track | None = Field(default=None, description="what is told of the run beside its folder")

    @property
    def spec(self) -> RunSpec:
        """The run, as the engine knows it.

        Raises:
            ArgumentError: The method is unknown, or its hyperparameter is missing or another method's.
        """
        return RunSpec(
            task=self.task,
            method=self.method.name,
            value=self._value(),
            seed=self.seed,
            budget=self.budget,
            device=self.device,
            changes=self.changes,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that the numbers depend on."""
        return self.model_dump(exclude={"measure", "checkpoint_seconds", "track"})

    @property
    def folder(self) -> Path:
        """Where the run is kept if nothing else is said."""
        shared = "" if self.parallel == "none" else f"-{self.parallel}"
        return Path("runs/train") / f"{self.spec.folder}{shared}"

    def check(self) -> None:
        """Raise the first reason why the run cannot be made, before anything is written.

        Raises:
            ArgumentError: A name is unknown, a number cannot work, or the device is not there.
            DataError: What the task needs under the data root is not there.
        """
        from flatmin_lab.compare import check

        spec = self.spec
        arm = Arm(task=spec.task, method=spec.method, budget=spec.budget)
        check(Study(arms=(arm,), seeds=1, device=spec.device), workers=1)
        if self.parallel == "fsdp" and task(spec.task).measuring.along is not None:
            raise ArgumentError(
                f"parallel is 'fsdp', but the task {spec.task!r} measures curvature along the way, which shards of a "
                "network have no second derivatives for. Take --parallel ddp."
            )

    def toml(self) -> str:
        """Return the file that says this; the two tables come last."""
        everything = self.model_dump(exclude_none=True)
        tables = {name: part for name, part in everything.items() if isinstance(part, dict)}
        lines = [f"{name} = {_literal(value)}" for name, value in everything.items() if name not in tables]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(f"{key} = {_literal(value)}" for key, value in table.items())]
        return "\n".join(lines) + "\n"

    def _value(self) -> float | None:
        way = method(self.method.name)
        given = {name: value for name in _RADII if (value := getattr(self.method, name)) is not None}
        own = way.hyperparameter
        if foreign := sorted(given.keys() - {own}):
            has = f"its hyperparameter is {own}" if own else "it has no hyperparameter"
            instead = f"Give method.{own} instead" if own else "Leave it out"
            raise ArgumentError(
                f"method.{foreign[0]} is {given[foreign[0]]:g}, but the method is {way.name!r}, and {has}. {instead}."
            )
        if own and own not in given:
            tried = ", ".join(f"{value:g}" for value in way.grid)
            raise ArgumentError(
                f"the method is {way.name!r}, but its {own} is not given. Say method.{own} in the file or "
                f"--method.{own}; `flatmin compare` tries {tried} unless a task has a grid of its own."
            )
        return given.get(own or "")


def read_config(file: Path | None, flags: Mapping[str, Any]) -> TrainConfig:
    """Merge a file and flags, of which the flags win.

    A flag that names another method than the file sets the file's hyperparameter aside, which was that method's.

    Args:
        file: TOML with the fields of `TrainConfig`; None for flags alone.
        flags: Fields that were given, nested like the file.

    Returns:
        The configuration.

    Raises:
        ArgumentError: The file cannot be read, or a field is unknown, missing, or of the wrong kind.
    """
    read = {} if file is None else _read(file)
    source = "the flags" if file is None else str(file)
    merged = {**read, **flags}
    for name in ("method", "changes"):
        before, given = read.get(name, {}), flags.get(name, {})
        if not isinstance(before, Mapping):
            raise ArgumentError(
                f"{source}: {name} is {before!r}, but it is a table. Write [{name}] on a line of its own."
            )
        if name == "method" and given.get("name", before.get("name")) != before.get("name"):
            before = {key: value for key, value in before.items() if key not in _RADII}
        merged[name] = {**before, **given}
    try:
        return TrainConfig.model_validate(merged, strict=True)
    except ValidationError as error:
        raise _explained(error, source) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ArgumentError(
            f"{file} cannot be read: {error.strerror}. Name a TOML file, or none and give flags alone."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{file} is no TOML: {error}. Mend that place; texts stand in quotes.") from error


def _explained(error: ValidationError, source: str) -> ArgumentError:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        try:
            choice(f"{source}: a field", name, _fields(TrainConfig))
        except ArgumentError as named:
            return named
    if first["type"] == "missing":
        known = f" Methods: {', '.join(METHODS)}." if name == "method.name" else ""
        return ArgumentError(f"{source}: {name} is not given. Say it in the file, or as --{name}.{known}")
    return ArgumentError(f"{source}: {name} is {first['input']!r}. {first['msg']}.")


def _fields(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """The fields of a configuration, those of its tables with the table's name before them."""
    names = []
    for name, field in kind.model_fields.items():
        table: Any = field.annotation
        names += _fields(table, f"{name}.") if table in (MethodConfig, Changes) else [prefix + name]
    return names


def _literal(value: Any) -> str:
    # JSON's texts and truth values are TOML's; its infinities are not, and repr is shorter for 1e-05.
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)

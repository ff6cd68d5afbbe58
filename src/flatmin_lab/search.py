"""How the values of sigma, rho and alpha that are tried are found: all of a grid, or suggested one by one by Optuna.

A search is a function of what is stored: it is asked which values to try and is given, by a function, how well those
already run did. Equal scores give equal suggestions, so a sweep that was interrupted goes on where it was.

Importing this file does not load torch, so that the command line can name the searches at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from optuna import Study

Name = Literal["grid", "optuna"]
"""The searches there are."""

Score = Callable[[float], float | None]
"""How well a value did: the mean validation accuracy over the tuning seeds; NaN where one diverged, None where not all
of them are run yet."""

_DIGITS = 4  # of suggested values: so they can be printed whole, and last digits of other machines do not matter


@dataclass(frozen=True)
class Searched:
    """How far a search is.

    Attributes:
        tried: The values that were run, in the order in which they were asked for, and their scores.
        pending: The values to run next; empty once the search has ended.
    """

    tried: Mapping[float, float]
    pending: tuple[float, ...]

    @property
    def best(self) -> float | None:
        """The value with the highest score, the smallest of equals; None if every value diverged."""
        finite = {value: score for value, score in self.tried.items() if not math.isnan(score)}
        return min(finite, key=lambda value: (-finite[value], value), default=None)


class Searcher(Protocol):
    """Says which values of a hyper-parameter to try."""

    def search(self, grid: Sequence[float], score: Score, seed: int) -> Searched:
        """Say what was tried and what comes next.

        Args:
            grid: The published grid. Whatever is suggested lies within its ends, as many trials as it has values.
            score: What is known of a value.
            seed: Of the search; different ones for different arms.

        Returns:
            How far it is.
        """
        ...


class Grid:
    """Tries every value of the grid, all at once.

    Example:
        >>> Grid().search((0.1, 0.2), {0.1: 0.9}.get, seed=0)
        Searched(tried=mappingproxy({0.1: 0.9}), pending=(0.2,))
    """

    def search(self, grid: Sequence[float], score: Score, seed: int) -> Searched:  # noqa: ARG002, D102  (a Searcher's)
        return _searched(grid, score)


class Optuna:
    """As many trials as the grid has values, between its ends on a logarithmic scale, by Parzen estimators (TPE).

    The first half of the trials is drawn at random and run at once; each of the others is suggested after all before it
    (Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011). A value that diverged counts as the
    worst there is. Suggestions are rounded to four digits.

    Raises:
        MissingPackageError: Optuna is not installed.
    """

    def __init__(self) -> None:
        from flatmin_lab.data.root import required

        self._optuna = required("optuna", "Optuna", "suggests values with --search optuna", "flatmin[search]")

    def search(self, grid: Sequence[float], score: Score, seed: int) -> Searched:  # noqa: D102  (a Searcher's)
        low, high = min(grid), max(grid)
        if not 0.0 < low < high:
            from flatmin.errors import ArgumentError

            raise ArgumentError(
                f"the values {tuple(grid)} span no range on a logarithmic scale, which --search optuna needs. Give two "
                "or more positive ones, or take --search grid."
            )
        with self._quiet():
            study = self._study(len(grid), seed)
            values: list[float] = []
            while len(values) < len(grid):
                batch = self._ask(study, low, high, self._batch(len(values), len(grid)))
                values += batch.values()
                found = _searched(values, score)
                if found.pending:
                    return found
                for trial, value in batch.items():
                    reached = found.tried[value]
                    study.tell(trial, -math.inf if math.isnan(reached) else reached)
        return _searched(values, score)

    def _study(self, trials: int, seed: int) -> Study:
        sampler = self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=_at_random(trials))
        return self._optuna.create_study(direction="maximize", sampler=sampler)

    @staticmethod
    def _batch(asked: int, trials: int) -> int:
        return _at_random(trials) if asked == 0 else 1

    @staticmethod
    def _ask(study: Study, low: float, high: float, count: int) -> dict[Any, float]:
        trials = [study.ask() for _ in range(count)]
        suggested = {trial: trial.suggest_float("value", low, high, log=True) for trial in trials}
        return {trial: min(max(float(f"{x:.{_DIGITS}g}"), low), high) for trial, x in suggested.items()}

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Optuna tells of every study that is made, on standard error."""
        logging = self._optuna.logging
        former = logging.get_verbosity()
        logging.set_verbosity(logging.WARNING)
        try:
            yield
        finally:
            logging.set_verbosity(former)


def searcher(name: Name) -> Searcher:
    """The search of that name.

    Args:
        name: ``grid`` or ``optuna``.

    Returns:
        It.

    Raises:
        MissingPackageError: It needs a package that is not installed.
    """
    return Optuna() if name == "optuna" else Grid()


def _searched(values: Sequence[float], score: Score) -> Searched:
    scores = {value: score(value) for value in values}  # two trials of one value are one run
    tried = {value: known for value, known in scores.items() if known is not None}
    return Searched(MappingProxyType(tried), tuple(value for value, known in scores.items() if known is None))


def _at_random(trials: int) -> int:
    return -(-trials // 2)

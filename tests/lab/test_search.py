"""Which values are tried: as many for every method, the same again from what is stored, and the best of them chosen."""

import math
import sys

import pytest

from flatmin.errors import ArgumentError
from flatmin_lab.errors import MissingPackageError
from flatmin_lab.search import Grid, Optuna, Searched, searcher

GRID = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


def objective(value):
    """Best at 0.1, on a logarithmic scale."""
    return 1.0 - math.log10(value / 0.1) ** 2 / 10


def ended(search, grid, objective, seed=0):
    """Run a search to its end: the batches that it asked for, and what came of it."""
    known, batches = {}, []
    while (found := search.search(grid, known.get, seed)).pending:
        batches.append(found.pending)
        assert len(batches) <= len(grid)
        known |= {value: objective(value) for value in found.pending}
    return batches, found


def test_a_grid_is_tried_whole_and_at_once():
    batches, found = ended(Grid(), GRID, objective)
    assert batches == [GRID]
    assert dict(found.tried) == {value: objective(value) for value in GRID}
    assert found.best == 0.1


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_as_many_trials_as_the_grid_has_values_within_its_ends(size):
    grid = GRID[-size:]
    batches, found = ended(Optuna(), grid, objective)
    assert [len(batch) for batch in batches] == [-(-size // 2)] + [1] * (size // 2)
    assert len(found.tried) == size
    assert all(min(grid) <= value <= max(grid) for value in found.tried)
    assert all(float(f"{value:.4g}") == value for value in found.tried)


def test_a_search_goes_on_from_what_is_stored_as_if_it_had_not_stopped():
    """Known scores alone decide: a new searcher and another order of asking give the same values."""
    batches, found = ended(Optuna(), GRID, objective)
    for stop in range(len(batches)):
        stored = {value: objective(value) for batch in batches[:stop] for value in batch}
        assert Optuna().search(GRID, stored.get, 0).pending == batches[stop]
    half_run = {batches[0][1]: objective(batches[0][1])}
    assert Optuna().search(GRID, half_run.get, 0).pending == (batches[0][0], *batches[0][2:])
    assert Optuna().search(GRID, dict(found.tried).get, 0) == found


def test_seeds_differ_and_scores_decide():
    first, _ = ended(Optuna(), GRID, objective)
    assert ended(Optuna(), GRID, objective, seed=1)[0][0] != first[0]
    other, _ = ended(Optuna(), GRID, lambda value: -objective(value))
    assert other[0] == first[0]
    assert other[1:] != first[1:]


def test_first_trials_spread_evenly_on_a_logarithmic_scale():
    """Their logarithms are uniform: mean 1/2 and variance 1/12 of the range, within four standard errors."""
    drawn = [v for seed in range(100) for v in Optuna().search(GRID, lambda _: None, seed).pending]
    low, high = math.log(GRID[0]), math.log(GRID[-1])
    positions = [(math.log(value) - low) / (high - low) for value in drawn]
    n = len(positions)
    assert n == 400
    assert abs(sum(positions) / n - 0.5) < 4 * math.sqrt(1 / 12 / n)
    spread = sum((x - 0.5) ** 2 for x in positions) / n
    assert abs(spread - 1 / 12) < 4 * math.sqrt(1 / 180 / n)  # Var (x - 1/2)² = 1/80 - 1/144 = 1/180


def test_what_diverged_counts_as_worst_and_is_never_chosen():
    batches, found = ended(Optuna(), GRID, lambda value: math.nan if value > 0.05 else objective(value))
    assert sum(map(len, batches)) == len(GRID)
    assert found.best is not None
    assert found.best <= 0.05
    _, found = ended(Optuna(), GRID, lambda _: math.nan)
    assert found.best is None


def test_of_equal_values_the_smallest_is_best():
    assert Searched({0.2: 0.5, 0.1: 0.5, 0.3: 0.4}, ()).best == 0.1


@pytest.mark.parametrize("grid", [(0.1,), (0.0, 0.1), (0.2, 0.2)])
def test_values_without_a_range_are_refused(grid):
    with pytest.raises(ArgumentError, match=r"span no range on a logarithmic scale.*--search grid"):
        Optuna().search(grid, lambda _: None, 0)


def test_by_name(monkeypatch, capsys):
    assert isinstance(searcher("grid"), Grid)
    assert isinstance(searcher("optuna"), Optuna)
    ended(searcher("optuna"), GRID, objective)
    assert not any(capsys.readouterr())
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingPackageError, match=r"--search optuna.*pip install 'flatmin\[search\]'"):
        searcher("optuna")

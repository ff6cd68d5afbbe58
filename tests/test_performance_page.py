"""docs/performance.md is what its script makes of the stored results; slopes are those of powers."""

import sys
from pathlib import Path

import pytest

from page_scripts import page_script

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_is_made_of_the_stored_results():
    script = page_script("performance")
    assert (ROOT / "docs" / "performance.md").read_text() == script.page()


def test_a_slope_is_the_power(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    from training.scaling import slope

    sizes = [1.0, 4.0, 16.0]
    assert slope(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert slope(sizes, [1.0, -1.0, 2.0]) is None


def test_ways_that_are_written_here_step_as_their_papers_say(monkeypatch):
    """At radius 0 both are plain SGD."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import torch
    from training import written
    from training.problems import Instance, layers

    monkeypatch.setattr(written, "RADIUS", 1e-30)
    problem, cpu = layers(1), torch.device("cpu")
    plain = Instance(problem, cpu)
    plain.ideal(1)()
    for make in (written.three_passes, written.two_calls):
        instance = Instance(problem, cpu)
        make(instance)()
        for mine, theirs in zip(instance.model.parameters(), plain.model.parameters()):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7)

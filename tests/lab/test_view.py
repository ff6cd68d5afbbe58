"""The picture of a run: its numbers are those of the latest point, on any terminal, and it cannot end a run."""

import io
import math

import pytest
from rich.console import Console

from flatmin_lab.spec import Point
from flatmin_lab.train import progress
from flatmin_lab.train.progress import RunBar
from flatmin_lab.train.view import ASCII, BLOCKS, View, sparkline
from small_runs import run_spec

SHARES = {"encoder.layer.0.attention.self.query": 0.5, "1": 0.25, "2": 0.15, "3": -0.14, "4": 0.08, "5": 0.01}


def point(evaluations=50, **changes):
    given = {"train_loss": 0.25, "train_accuracy": 0.75, "validation_loss": 0.5, "validation_accuracy": 0.625}
    return Point(evaluations=evaluations, **{**given, **changes})


def live(evaluations=50, **changes):
    given = {"live_trace": 151.2, "live_trace_stderr": 12.3, "live_shares": SHARES, "noise_to_signal": 0.86}
    return point(evaluations, **{**given, **changes})


def drawn(view, *, width=80, encoding="utf-8"):
    """What a terminal shows, by line."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    console.print(view)
    file.flush()
    return [line.rstrip() for line in file.buffer.getvalue().decode(encoding).splitlines()]


def view_of(*points, budget=100):
    view = View(Console(file=io.StringIO()))
    view.begin(run_spec(budget=budget), 0)
    for each in points:
        view.add(each)
    return view


class TestPicture:
    def test_it_has_the_latest_numbers_and_their_course(self):
        lines = drawn(view_of(live(25, train_loss=1.0, live_trace=900.0), live(50)))
        assert lines[0] == run_spec(budget=100).name
        assert "50/100 evaluations" in lines[1]
        rows = [line.split() for line in lines[2:]]
        assert rows[:5] == [
            ["loss", "0.2500", "█▁"],
            ["validation", "accuracy", "62.5%", "▁▁"],
            ["live", "trace", "151", "±", "12", "█▁"],
            ["noise", "to", "signal", "0.86", "▁▁"],
            ["share", "of", "layers", "5", "of", "6"],
        ]
        bars = {row[0]: (row[1], row[2].count("█"), len(row[2])) for row in rows[5:]}
        assert bars == {
            "encoder.layer.0.attention.self.query": ("50.0%", 12, 24),
            "1": ("25.0%", 6, 24),
            "2": ("15.0%", 4, 24),
            "3": ("-14.0%", 0, 24),  # among the largest by what it moves, and no bar goes below zero
            "4": ("8.0%", 2, 24),
        }

    def test_a_method_without_a_live_trace_has_no_row_of_it(self):
        text = "\n".join(drawn(view_of(point())))
        assert "loss" in text
        assert not any(word in text for word in ("trace", "noise", "share", "±"))

    def test_a_trace_of_one_sample_has_no_standard_error(self):
        assert "live trace           151.2" in "\n".join(drawn(view_of(live(live_trace_stderr=None, live_shares=None))))

    @pytest.mark.parametrize("width", [36, 40, 50, 60, 80, 120])
    def test_numbers_are_whole_on_every_terminal(self, width):
        lines = drawn(view_of(live(25), live(50)), width=width)
        text = "\n".join(lines)
        assert max(map(len, lines)) <= width
        assert all(whole in text for whole in ("0.2500", "62.5%", "151 ± 12", "0.86", "50.0%", "-14.0%", "50/100"))
        pictures = [line.split()[-1] for line in lines if set(line.split()[-1]) & set("█░")]
        assert bool(pictures) == (width >= 40)

    def test_a_bar_of_half_is_half_however_wide_it_is(self):
        for width in (50, 60, 80):
            (row,) = (line for line in drawn(view_of(live()), width=width) if "50.0%" in line)
            assert row.count("█") == pytest.approx((row.count("█") + row.count("░")) / 2, abs=0.5)

    def test_layers_go_by_the_end_of_their_names(self):
        lines = drawn(view_of(live()), width=50)
        assert any(line.startswith("  …ntion.self.query  ") for line in lines)

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
    def test_terminals_without_unicode_get_signs_they_have(self, encoding):
        lines = drawn(view_of(live(25), live(50)), width=50, encoding=encoding)
        text = "\n".join(lines)
        assert text.isascii()
        assert "151 +- 12" in text
        assert "####" in text

    def test_nothing_is_shown_before_a_run_begins(self):
        assert drawn(View(Console(file=io.StringIO()))) == []

    def test_a_run_that_goes_on_shows_what_came_before(self):
        view = View(Console(file=io.StringIO()))
        view.begin(run_spec(budget=100), 50, [live(25, train_loss=1.0), live(50)])
        text = "\n".join(drawn(view))
        assert "50/100 evaluations" in text
        assert "0.2500    █▁" in text

    def test_measuring_has_no_time_left(self):
        view = view_of(live(100))
        view.occupied(run_spec(budget=100), "measuring curvature")
        assert drawn(view)[1].endswith("100/100 evaluations measuring curvature")

    @pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300, 0.0, -5.0])
    def test_no_number_ends_the_run(self, value):
        odd = live(live_trace=value, live_trace_stderr=abs(value), noise_to_signal=math.inf, live_shares={"0": value})
        assert len(drawn(view_of(live(), odd, live(live_trace=1e308), live(live_trace=-1e308)))) == 12
        assert len(drawn(view_of(odd))) == 8


class TestSparkline:
    @pytest.mark.parametrize("levels", [BLOCKS.levels, ASCII.levels])
    def test_equal_steps_are_equal_levels(self, levels):
        assert sparkline(range(8), levels=levels) == levels
        assert sparkline([3.0 - 2 * number for number in range(8)], levels=levels) == levels[::-1]

    def test_the_latest_have_room(self):
        assert sparkline([*range(100), 0, 7], cells=2) == "▁█"
        assert sparkline([1.0, 2.0], cells=0) == ""

    def test_what_is_not_known_is_a_space_and_what_stands_still_is_low(self):
        assert sparkline([None, 1.0, math.nan, 1.0]) == " ▁ ▁"
        assert sparkline([None, math.inf]) == ""


@pytest.fixture
def bar(monkeypatch):
    """A run's course, shown ten seconds a point; what was written."""

    def show(*, terminal, encoding="utf-8"):
        now = iter(range(0, 10_000, 10))
        monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        console = Console(file=file, force_terminal=terminal, width=100, color_system=None)
        with RunBar(console) as bar:
            bar.begin(run_spec(budget=100), 0)
            bar.point(live())
            bar.note("A line [of] text.")
            bar.measuring(run_spec(budget=100))
            if terminal:
                bar._live.refresh()
        file.flush()
        return file.buffer.getvalue().decode(encoding)

    return show


class TestRunBar:
    def test_on_a_terminal_it_moves_and_goes_away(self, bar):
        written = bar(terminal=True)
        assert "A line [of] text." in written
        assert "live trace" in written
        assert "measuring curvature" in written
        assert written.endswith("\x1b[1A\x1b[2K")  # cursor up, line cleared

    def test_a_rank_that_shows_nothing_leaves_the_terminal_alone(self):
        file = io.StringIO()
        with RunBar(Console(file=file, force_terminal=True)):
            pass
        assert file.getvalue() == ""

    @pytest.mark.parametrize(("encoding", "sign"), [("utf-8", "±"), ("ascii", "+-")])
    def test_elsewhere_it_writes_an_occasional_line(self, bar, encoding, sign):
        name = run_spec(budget=100).name
        assert bar(terminal=False, encoding=encoding).splitlines() == [
            f"{name}: 50 of 100 evaluations, loss 0.2500, validation accuracy 62.5%, live trace 151 {sign} 12",
            "A line [of] text.",
            f"{name}: 100 of 100 evaluations, measuring curvature",
        ]

"""`flatmin landscape`: from weights on a disk to lines and planes on one scale; interrupted and taken up again."""

import json
import math

import pytest
import torch
from PIL import Image

from flatmin.errors import FlatminError
from flatmin.landscape import eigenvector_directions, random_directions, surface, unit
from flatmin_lab import cli
from flatmin_lab.errors import LockedError, StoreError
from flatmin_lab.landscapes.record import LandscapeSpec, Slice, load_landscape
from flatmin_lab.landscapes.survey import folder_for, held, prepare, survey
from flatmin_lab.models.mlp import mlp
from flatmin_lab.report.landscapes import command, drawings, numbers, render_landscape
from lab_data import save
from page_parser import Page
from small_runs import outcome, run_spec

SMALL = {"examples": 40, "batch_size": 16, "points": 3}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Three perceptrons for the digits, as files."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [str(save(mlp((64, 6, 10)), folder / f"{name}.pt")) for name in ("one", "two", "three")]


def arguments(weights, out, *more):
    return ["landscape", *weights, "--examples", "40", "--batch-size", "16", "--points", "3", "--out", str(out), *more]


def looked(weights, folder, progress=lambda *_: None, **changes):
    """What a survey finds, with the networks and the examples."""
    spec, solutions, examples = prepare(LandscapeSpec(weights=tuple(weights), **{**SMALL, **changes}), None)
    with held(folder):
        return survey(spec, solutions, examples, folder, progress=progress), solutions, examples


@pytest.fixture(scope="module")
def planes(weights, tmp_path_factory):
    """Two planes along random directions, kept in a folder."""
    folder = tmp_path_factory.mktemp("planes")
    return looked(weights[:2], folder)[0], folder


def test_json_alone_is_on_standard_output_and_is_what_is_kept(weights, tmp_path, capsys):
    assert cli.main(arguments(weights[:2], tmp_path / "out", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    files = found.pop("files")
    assert found == json.loads((tmp_path / "out/landscape.json").read_text())
    assert set(files) == {"record", "report", *(f"plane{i}.{kind}" for i in (0, 1) for kind in ("svg", "png"))}
    with Image.open(files["plane1.png"]) as image:
        assert image.width > 800
    assert [one["label"] for one in found["slices"]] == ["one", "two"]


def test_report_says_the_same_from_what_is_stored(planes, capsys):
    found, folder = planes
    assert cli.main(["report", str(folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    files = printed.pop("files")
    assert printed == found.model_dump(mode="json")
    assert all((folder / name).exists() for name in ("report.html", "plane0.svg", "plane1.png"))
    assert files["report"] == str(folder / "report.html")


@pytest.mark.parametrize(("kind", "step"), [("random", "filters"), ("random", "distance"), ("eigenvectors", None)])
def test_the_losses_are_those_of_the_library_on_one_grid(weights, tmp_path, kind, step):
    found, solutions, examples = looked(weights[:2], tmp_path / "out", directions=kind, unit=step, seed=3)
    lengths = []
    for one, solution in zip(found.slices, solutions, strict=True):
        model, (first, second) = solution.subject.model, one.axes
        if kind == "eigenvectors":
            import flatmin as fm

            pairs = fm.top_eigenvalues(fm.Hessian(model, examples.loss_fn, examples.batches), k=2, seed=3)
            directions = eigenvector_directions(pairs)
            assert one.eigenvalues == pytest.approx(pairs.values.tolist())
        else:
            directions = random_directions(model, seed=3)
            lengths += surface(model, examples.loss_fn, examples.batches, coordinates=[0.0]).lengths
            directions = directions if step == "filters" else [unit(direction) for direction in directions]
        expected = surface(model, examples.loss_fn, examples.batches, coordinates=first, directions=directions)
        assert first == second == found.slices[0].axes[0]
        assert one.loss == pytest.approx(expected.loss.flatten().tolist())
        assert one.loss_there == pytest.approx(one.loss[4])  # the middle of three by three
        assert one.lengths == pytest.approx(expected.lengths)
    assert found.slices[0].axes[0][2] == pytest.approx(max(lengths) if step == "distance" else 1.0)
    assert load_landscape(tmp_path / "out") == found


def test_a_line_between_two_solutions_arrives(weights, tmp_path):
    found, solutions, examples = looked(weights[:2], tmp_path, directions="between", reach=1.0, points=4)
    (line,) = found.slices
    assert line.axes == (pytest.approx((-1.0, 0.0, 1.0, 2.0)),)
    ends = [
        float(surface(s.subject.model, examples.loss_fn, examples.batches, coordinates=[0.0]).loss[0, 0])
        for s in solutions
    ]
    assert line.loss[1:3] == pytest.approx(ends, rel=1e-5)
    assert line.label == "one (0) to two (1)"


def test_a_plane_goes_through_three_solutions(weights, tmp_path):
    found, solutions, _ = looked(weights, tmp_path, directions="between")
    (plane,) = found.slices
    places = torch.tensor([mark.at for mark in plane.marks], dtype=torch.float64)
    flat = torch.stack([torch.cat([p.flatten() for p in s.subject.model.parameters()]) for s in solutions]).double()
    torch.testing.assert_close(torch.cdist(places, places), torch.cdist(flat, flat).detach(), rtol=1e-5, atol=1e-5)
    assert [mark.label for mark in plane.marks] == ["one", "two", "three"]
    assert all(mark.distance < 1e-3 for mark in plane.marks)
    (drawing,) = drawings(found)
    assert {text.get_text() for text in drawing.figure.axes[0].texts} == {"one", "two", "three"}
    assert "three is at (" in render_landscape(found, [drawing])


def test_several_solutions_have_one_scale(planes):
    found, _ = planes
    norms = [drawing.figure.axes[0].collections[0].norm for drawing in drawings(found)]
    losses = [loss for one in found.slices for loss in one.loss]
    assert {(norm.vmin, norm.vmax) for norm in norms} == {(min(losses), max(losses))}


def test_the_page_is_one_file_with_the_one_script_that_turns(planes):
    found, _ = planes
    html = render_landscape(found, list(drawings(found)))
    page = Page(html)
    assert page.open == []
    assert page.scripts == 1
    assert "script-src 'sha256-" in html
    assert all(url.startswith(("#", "data:")) for url in page.loaded)
    assert len(page.ids) == len(set(page.ids))
    assert "one and two" in "".join(page.text)
    for row in numbers(found)[1]:
        assert all(cell in html for cell in row)


def test_lines_have_no_script(weights, tmp_path, capsys):
    assert cli.main(arguments(weights[:2], tmp_path, "--dimensions", "1", "--directions", "eigenvectors")) == 0
    printed = capsys.readouterr().out
    assert "Eigenvalues" in printed
    assert "report.html" in printed
    assert Page((tmp_path / "report.html").read_text()).scripts == 0
    assert (tmp_path / "lines.png").exists()


def test_what_came_from_outside_is_escaped(planes):
    evil = "<script>alert(1)</script>"
    found = planes[0]
    bad = found.slices[0].model_copy(update={"label": evil, "notes": (evil,)})
    found = found.model_copy(update={"slices": (bad,), "environment": {evil: evil}})
    page = Page(render_landscape(found, list(drawings(found))))
    assert page.scripts == 1
    assert evil in "".join(page.text)


def test_the_command_on_the_page_finds_the_same(planes):
    found, _ = planes
    words = command(found)
    for part in ("--directions random", "--dimensions 2", "--points 3", "--unit filters", "--data digits-clean"):
        assert part in words


def test_losses_that_are_not_finite_are_kept_and_drawn_as_nothing(planes, tmp_path):
    found = planes[0]
    broken = found.slices[0].model_copy(update={"loss": (math.nan, math.inf, *found.slices[0].loss[2:])})
    found = found.model_copy(update={"slices": (broken,)})
    (tmp_path / "landscape.json").write_text(found.model_dump_json())
    again = load_landscape(tmp_path).slices[0]
    assert math.isnan(again.loss[0])
    assert math.isinf(again.loss[1])
    assert render_landscape(found, list(drawings(found))).count("null") >= 2
    nowhere = found.model_copy(update={"slices": (broken.model_copy(update={"loss": (math.nan,) * 9}),)})
    assert not list(drawings(nowhere))
    assert Page(render_landscape(nowhere, [])).scripts == 0


def test_runs_are_called_after_their_method(tmp_path):
    places = []
    for method in ("sgd", "nso"):
        done = outcome(run_spec(method))
        place = tmp_path / method
        place.mkdir()
        (place / "spec.json").write_text(done.result.spec.model_dump_json())
        (place / "weights.safetensors").write_bytes(done.weights)
        places.append(str(place))
    found, _, _ = looked(places, tmp_path / "out", dimensions=1)
    assert [(one.label, one.method) for one in found.slices] == [("SGD, seed 0", "sgd"), ("NSO, seed 0", "nso")]
    (drawing,) = drawings(found)
    assert [line.get_color() for line in drawing.figure.axes[0].get_lines()[:2]] == ["#3d4653", "#0064b4"]
    assert folder_for(found.spec).as_posix().startswith("runs/landscape/")


class Interrupting:
    """Progress that ends in Ctrl-C after some news of a part."""

    def __init__(self, part, after):
        self.part, self.left = part, after

    def __call__(self, part, done, total):
        self.left -= part == self.part
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("part", ["eigenvectors, two", "one", "two"])
def test_interrupted_it_goes_on_from_the_disk(weights, tmp_path, part):
    whole = looked(weights[:2], tmp_path / "whole", directions="eigenvectors")[0]
    with pytest.raises(KeyboardInterrupt):
        looked(weights[:2], tmp_path / "cut", Interrupting(part, 2), directions="eigenvectors")
    with pytest.raises(StoreError, match=r"no finished landscape.*interrupted"):
        load_landscape(tmp_path / "cut")
    told = []
    again = looked(weights[:2], tmp_path / "cut", lambda *news: told.append(news), directions="eigenvectors")[0]
    assert again == whole
    if part == "two":  # what was done is told at once
        assert [news for news in told if news[0] == "one"] == [("one", 27, 27)]


@pytest.mark.parametrize(
    ("count", "more", "parts"),
    [
        (1, ("--directions", "between"), ("one solution alone was named",)),
        (2, ("--directions", "between", "--unit", "filters"), ("unit is given",)),
        (2, ("--directions", "between", "--dimensions", "2"), ("needs three of them",)),
        (3, ("--directions", "between", "--reach", "2"), ("reach is given",)),
        (1, ("--reach", "0"), ("reach is 0",)),
        (1, ("--points", "1"), ("points is 1",)),
        (1, ("--data", "digits"), ("data is 'digits'",)),
        (1, ("--device", "abacus"), ("device is 'abacus'",)),
    ],
)
def test_bad_input_ends_with_one_message_and_status_2(weights, tmp_path, capsys, count, more, parts):
    assert cli.main(arguments(weights[:count], tmp_path / "out", *more)) == cli.BAD_INPUT
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("flatmin: ")
    assert errors.count("\n") == 1
    assert all(part in errors for part in parts), errors
    assert not (tmp_path / "out").exists()


def test_a_way_needs_networks_of_one_kind(weights, tmp_path):
    other = save(mlp((64, 5, 10)), tmp_path / "other.pt")
    with pytest.raises(FlatminError, match="network of another kind"):
        looked([weights[0], str(other)], tmp_path / "out", directions="between")


def test_a_folder_is_left_alone_if_it_is_of_others(planes, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(StoreError, match=r"other files \(thesis.tex, ...\) and no landscape"), held(tmp_path):
        pass
    with held(planes[1]), pytest.raises(LockedError), held(planes[1]):
        pass
    (tmp_path / "landscape.json").write_text("{}")
    with pytest.raises(StoreError, match=r"landscape\.json cannot be read.*finished points are kept"):
        load_landscape(tmp_path)


def test_a_slice_is_a_surface_again(planes):
    one: Slice = planes[0].slices[0]
    again = one.surface()
    assert again.loss[1, 2] == one.loss[5]
    assert again.lengths == one.lengths

"""`flatmin measure`: from weights on a disk to numbers, figures and a page; interrupted and taken up again."""

import json
import re
import xml.etree.ElementTree as ET

import pytest
import torch
from PIL import Image

from flatmin.errors import FlatminError
from flatmin_lab import cli
from flatmin_lab.errors import StoreError
from flatmin_lab.measure import MeasureSpec, Measuring, folder_for, load_sheet, prepare
from flatmin_lab.models.mlp import mlp
from flatmin_lab.parts import PartBars
from flatmin_lab.report.measured import command, precise, render_sheet, rows
from flatmin_lab.shelf import Shelf
from lab_data import images, resnet, save
from page_parser import Page
from small_runs import finish, outcome, run_spec, start


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A perceptron for the digits, as a file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return save(mlp((64, 6, 10)), tmp_path_factory.mktemp("weights") / "digits.pt")


def arguments(weights, out, *more):
    return ["measure", str(weights), "--examples", "40", "--batch-size", "16", "--out", str(out), *map(str, more)]


@pytest.fixture(scope="module")
def finished(weights, tmp_path_factory):
    """The folder of a measurement of everything, made by the real command, with what it printed."""
    folder = tmp_path_factory.mktemp("finished") / "runs"
    asked = ["--trace", "--eigenvalues", 2, "--density", "--layers", "--gap", 0.01, "--rtol", 0.1, "--json"]
    return folder, *finish(start(*arguments(weights, folder, *asked)))


def test_json_alone_is_on_standard_output(finished):
    folder, status, output, errors = finished
    assert status == 0, errors
    found = json.loads(output)
    assert found["spec"]["data"] == "digits-clean"
    assert found["measurement"]["num_parameters"] == 64 * 6 + 6 + 6 * 10 + 10
    assert found["measurement"]["num_examples"] == 40
    assert len(found["measurement"]["eigenvalues"]["values"]) == 2
    assert 0 <= found["accuracy"] <= 1
    assert set(found["files"]) >= {"record", "report", "density.png", "density.svg", "layers.png", "layers.svg"}
    kept = json.loads((folder / "measurement.json").read_text())
    assert {**kept, "files": found["files"]} == found


def test_the_numbers_are_those_of_the_library(finished, weights):
    sheet = load_sheet(finished[0])
    _, subject, examples = prepare(sheet.spec, None)
    from flatmin.measures.joint import measure

    again = measure(subject.model, examples.loss_fn, examples.batches, eigenvalues=2, gap=0.01, rtol=0.1)
    for name in ("trace", "layers", "gap"):
        assert str(getattr(again, name)) == str(getattr(sheet.measurement, name))
    assert again.eigenvalues.values.tolist() == sheet.measurement.eigenvalues.values.tolist()
    assert sheet.digest == subject.digest


def test_figures_are_files_of_their_kind(finished):
    folder = finished[0]
    for name in ("density", "layers"):
        with Image.open(folder / f"{name}.png") as image:
            assert image.width > 800
        assert ET.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")


def test_the_page_is_one_file_without_scripts_or_requests(finished):
    html = (finished[0] / "report.html").read_text()
    page = Page(html)
    assert page.open == []
    assert page.scripts == 0
    assert all(url.startswith(("#", "data:")) for url in page.loaded)
    assert len(page.ids) == len(set(page.ids))
    assert {url[1:] for url in page.loaded if url.startswith("#")} <= set(page.ids)
    for row in rows(load_sheet(finished[0])):
        assert row.value in html


def test_the_command_on_the_page_measures_the_same_again(finished):
    sheet = load_sheet(finished[0])
    words = command(sheet).split()
    assert words[:3] == ["flatmin", "measure", sheet.spec.weights]
    for word in ("--data digits-clean", "--examples 40", "--eigenvalues 2", "--gap 0.01", "--rtol 0.1", "--density"):
        assert word in command(sheet)


def test_report_says_the_same_from_what_is_stored(finished, capsys):
    folder, _, output, _ = finished
    before = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert cli.main(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(output)
    assert (folder / "report.html").read_text() == before


def test_the_table(finished, capsys):
    assert cli.main(["report", str(finished[0])]) == 0
    printed = capsys.readouterr().out
    for word in (
        "Hessian trace",
        "Eigenvalues",
        "Perturbation gap",
        "Smoothed trace",
        "Largest layers",
        "G in all",
    ):
        assert word in printed
    assert "…" not in printed


def test_with_nothing_named_everything_but_the_gap_is_measured(weights, tmp_path, capsys):
    assert cli.main(arguments(weights, tmp_path / "all", "--json", "--rtol", "0.2")) == 0
    found = json.loads(capsys.readouterr().out)["measurement"]
    assert all(found[name] for name in ("trace", "eigenvalues", "density", "layers"))
    assert found["gap"] is None
    assert cli.main(arguments(weights, tmp_path / "one", "--json", "--eigenvalues", "1")) == 0
    found = json.loads(capsys.readouterr().out)["measurement"]
    assert [name for name in ("trace", "eigenvalues", "density", "layers", "gap") if found[name]] == ["eigenvalues"]


def test_a_residual_network_on_images(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FLATMIN_DATA", str(images(tmp_path)))
    path = save(resnet(), tmp_path / "small.safetensors")
    assert cli.main(["measure", str(path), "--trace", "--layers", "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["kind"] == "resnet8"
    assert found["spec"]["data"] == "cifar10-jpeg75"
    assert found["measurement"]["trace"]["stderr"] == 0.0  # piecewise linear
    assert found["measurement"]["trace"]["method"] == "exact"


def test_a_loss_that_is_not_curved(tmp_path, capsys):
    """Weights so large that every probability is 0 or 1: there is nothing to share, and still a table and a page."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mlp((64, 6, 10))
    for parameter in model.parameters():
        parameter.data.mul_(1e4)
    path = save(model, tmp_path / "flat.pt")
    assert cli.main(arguments(path, tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert "nan" not in printed
    assert "Hessian trace" in printed
    html = (tmp_path / "out/report.html").read_text()
    assert "nan" not in "".join(Page(html).text).lower()
    assert not (tmp_path / "out/layers.png").exists()


def test_a_run_of_the_comparison(tmp_path, capsys):
    done = outcome(run_spec("sgd"))
    (tmp_path / "spec.json").write_text(done.result.spec.model_dump_json())
    (tmp_path / "weights.safetensors").write_bytes(done.weights)
    assert cli.main(["measure", str(tmp_path), "--eigenvalues", "1", "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measurement"]["loss"] == pytest.approx(done.result.train_loss, rel=1e-5)
    assert found["accuracy"] == pytest.approx(done.result.train_accuracy)
    assert found["model"]["notes"] == ["Trained by sgd, digits-clean/sgd/seed0."]


class Interrupting:
    """Progress that ends in Ctrl-C after some news of a part."""

    def __init__(self, part, after):
        self.part, self.left = part, after

    def __call__(self, part, done, total):
        if part == self.part:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory):
    """A measurement that nobody interrupted, and what was asked for."""
    spec = MeasureSpec(weights=str(weights), examples=40, batch_size=16, eigenvalues=2, gap=0.01, rtol=0.02)
    with Measuring(tmp_path_factory.mktemp("whole")) as measuring:
        return spec, measuring.run(*prepare(spec, None))


@pytest.mark.parametrize(("part", "after"), [("layers", 1), ("trace", 3), ("density", 2), ("gap", 0)])
def test_interrupted_it_goes_on_from_the_disk(whole, tmp_path, part, after):
    spec, wanted = whole
    with Measuring(tmp_path / "cut") as measuring, pytest.raises(KeyboardInterrupt):
        measuring.run(*prepare(spec, None), Interrupting(part, after))
    with pytest.raises(StoreError, match=r"holds no finished measurement.*interrupted"):
        load_sheet(tmp_path / "cut")
    with Measuring(tmp_path / "cut") as measuring:
        again = measuring.run(*prepare(spec, None))
    for name in ("trace", "eigenvalues", "layers", "gap"):
        ours, theirs = (re.sub(r"\S+ gradients", "", str(getattr(s.measurement, name))) for s in (again, wanted))
        assert ours == theirs


def test_ctrl_c_says_how_to_go_on(weights, tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("flatmin_lab.measure.measure", stop)
    assert cli.main(arguments(weights, tmp_path / "out", "--trace")) == cli.INTERRUPTED
    errors = capsys.readouterr().err
    assert "Interrupted. Finished products are kept" in errors
    assert "flatmin measure" in errors
    assert "--trace" in errors


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (("--data", "digits"), ("data is 'digits'", "Did you mean 'digits-")),
        (("--data", "cifar10-jpeg75", "--data-root", "ROOT"), ("cannot read these examples", "--data")),
        (("--data", "mrpc"), ("which is text, but the model has no tokenizer",)),
        (("--model", "resnet20"), ("conv1.weight is missing", "another network")),
        (("--device", "abacus"), ("device is 'abacus'",)),
        (("--rtol", "0"), ("rtol is 0",)),
        (("--gap", "0"), ("gap is 0",)),
        (("--examples", "0"), ("examples is 0",)),
        (("--eigenvalues", "0"), ()),
    ],
)
def test_bad_input_ends_with_one_message_and_status_2(weights, tmp_path, capsys, more, parts):
    images(tmp_path)
    more = [str(tmp_path) if word == "ROOT" else word for word in more]
    status = cli.main(arguments(weights, tmp_path / "out", *more) if parts else ["report", str(tmp_path / "nowhere")])
    assert status == cli.BAD_INPUT
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("flatmin: ")
    assert errors.count("\n") == 1
    assert all(part in errors for part in parts), errors


def test_nothing_asked(weights):
    nothing = MeasureSpec(weights=str(weights), trace=False, eigenvalues=0, density=False, layers=False)
    with pytest.raises(FlatminError, match="nothing was asked for"):
        prepare(nothing, None)


def test_classes_that_the_model_does_not_know(tmp_path):
    path = save(mlp((64, 4, 5)), tmp_path / "w.pt")
    with pytest.raises(FlatminError, match="has a class 9, but the mlp knows 5 classes"):
        prepare(MeasureSpec(weights=str(path)), None)


def test_a_folder_with_other_files_is_left_alone(weights, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("")
    assert cli.main(arguments(weights, tmp_path)) == cli.BAD_INPUT
    assert "holds other files (thesis.tex, ...) and no measurement" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.tex"]


def test_a_damaged_record_is_named(finished, tmp_path):
    (tmp_path / "measurement.json").write_text("{}")
    with pytest.raises(StoreError, match=r"measurement\.json cannot be read.*finished parts are kept"):
        load_sheet(tmp_path)


def test_where_a_measurement_goes(tmp_path):
    path = tmp_path / "net.safetensors"
    path.touch()
    assert folder_for(MeasureSpec(weights=str(path))).as_posix() == "runs/measure/net"
    run = tmp_path / "digits-clean/nso-0.1/seed3"
    run.mkdir(parents=True)
    (run / "spec.json").touch()
    assert folder_for(MeasureSpec(weights=str(run))).as_posix() == "runs/measure/digits-clean-nso-0.1-seed3"


def test_what_came_from_outside_is_escaped(finished):
    from dataclasses import replace

    evil = "<script>alert(1)</script>"
    sheet = load_sheet(finished[0])
    sheet = replace(sheet, kind=evil, notes=(evil,), environment={evil: evil})
    page = Page(render_sheet(sheet, []))
    assert page.scripts == 0
    assert evil in "".join(page.text)


def test_a_shelf_holds_what_is_whole(tmp_path, monkeypatch):
    told = []
    shelf = Shelf(tmp_path / "parts", told.append)
    assert (list(shelf), len(shelf), "a" in shelf) == ([], 0, False)
    shelf["a/1"], shelf["b"] = {"x": torch.ones(2), "n": 1.5}, [1, "two"]
    assert list(shelf) == ["a/1", "b"]
    assert shelf["b"] == [1, "two"]
    (tmp_path / "parts/b.pt").write_bytes(b"half a f")
    assert shelf.get("b") is None
    assert told == [f"{tmp_path}/parts/b.pt is made again: it cannot be read."]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: [].pop())  # as some flipped bytes have it
        assert shelf.get("a/1") is None
    del shelf["a/1"]
    assert not (tmp_path / "parts/a").exists()
    with pytest.raises(KeyError):
        del shelf["a/1"]


def test_bars_where_nothing_can_move(monkeypatch):
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=80)
    monkeypatch.setattr("flatmin_lab.parts._SECONDS_BETWEEN_LINES", 0.0)
    with PartBars(console) as bars:
        bars("trace", 3, None)
        bars("gap", 1, 1)
    assert console.file.getvalue() == "trace: 3 products\ngap: 1/1\n"


def test_bars_on_a_terminal():
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with PartBars(console) as bars:
        bars("trace", 0, None)
        bars("trace", 3, None)
        bars("trace", 7, 7)
    assert "trace" in console.file.getvalue()


def test_digits_of_a_number():
    assert precise(-3.14159, 0.0) == "−3.1416"
    assert precise(-3.14159, 0.1) == "−3.14 ± 0.10"

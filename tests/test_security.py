"""What SECURITY.md promises: files of strangers are read, and nothing in them is ever run."""

import ast
import io
import json
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from flatmin.errors import ArgumentError, DataError
from flatmin_lab.data import archives, cifar, mnist, tars
from flatmin_lab.errors import WeightsError
from flatmin_lab.models.loading import load_subject
from flatmin_lab.report.html import render_page
from flatmin_lab.train.checkpoint import KeptCheckpoints
from flatmin_lab.train.config import read_config

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TEMPLATES = sorted((ROOT / "src/flatmin_lab/report").glob("*.j2"))


class Trap:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        import os

        return os.mkdir, (self.folder,)


@pytest.fixture
def trap(tmp_path):
    """What a pickle can do; afterwards it must not have been done."""
    sprung = tmp_path / "sprung"
    yield Trap(sprung)
    assert not sprung.exists()
    torch.load(saved(Trap(sprung)), weights_only=False)  # that it was one
    assert sprung.exists()


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    buffer.seek(0)
    return buffer


# --- weights and run folders


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "beside tensors"])
def test_weights_that_are_pickles_are_refused(tmp_path, trap, suffix, form):
    content = {
        "zip": lambda: saved(trap).read(),
        "legacy": lambda: saved(trap, _use_new_zipfile_serialization=False).read(),
        "bare": lambda: pickle.dumps(trap, protocol=2),
        "beside tensors": lambda: saved({"0.weight": torch.ones(2, 2), "0.bias": trap}).read(),
    }[form]()
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read"):
        load_subject(path)


def test_a_checkpoint_that_is_a_pickle_is_as_if_it_were_not_there(tmp_path, trap):
    said = []
    (tmp_path / "checkpoint.pt").write_bytes(saved({"code": "x", "model": trap}).read())
    assert KeptCheckpoints(tmp_path, note=said.append).load() is None
    assert "cannot be read" in said[0]


@pytest.mark.parametrize(
    "command",
    [
        ("measure", "{0}"),
        ("certify", "{0}"),
        ("report", "{0}", "--out", "{1}"),
        ("train", "--task", "digits-tiny", "--method.name", "sgd", "--budget", "4", "--out", "{0}"),
    ],
    ids=lambda command: command[0],
)
def test_a_run_folder_in_which_every_file_is_a_pickle(tmp_path, trap, command, monkeypatch, capsys):
    """Whatever a command makes of it, a message at the most, it runs nothing that is in there."""
    from flatmin_lab import cli

    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    (run / "parts").mkdir(parents=True)
    names = "spec result config environment measurement certificate comparison record surface metrics".split()  # noqa: SIM905
    for name in [*(f"{name}.json" for name in names), "metrics.jsonl", "run.toml", "weights.safetensors"]:
        (run / name).write_bytes(pickle.dumps(trap))
    for name in ("checkpoint.pt", "parts/trace.pt", "weights.pt"):
        (run / name).write_bytes(saved(trap).read())
    assert cli.main([part.format(run, tmp_path / "out") for part in command]) == cli.BAD_INPUT
    assert "Traceback" not in capsys.readouterr().err


def test_a_folder_of_transformers_with_weights_as_a_pickle_alone(tmp_path, trap):
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 8}
    small = {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps(config | small))
    (tmp_path / "pytorch_model.bin").write_bytes(saved(trap).read())
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load_subject(tmp_path)


@pytest.mark.parametrize("answer", ["y", "n"])
def test_code_that_comes_with_a_model_is_never_run_whatever_is_answered(tmp_path, monkeypatch, answer):
    monkeypatch.setattr("builtins.input", lambda *_: answer)
    sprung = tmp_path / "sprung"
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    auto = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    (tmp_path / "evil.py").write_text(
        f"import os\nos.mkdir({str(sprung)!r})\nfrom transformers import BertConfig as Config, BertModel as Model\n"
    )
    with pytest.raises(WeightsError, match="cannot be loaded as a transformer"):
        load_subject(tmp_path)
    assert not sprung.exists()


# --- data


@pytest.mark.parametrize("form", ["objects", "bare", "nonsense"])
@pytest.mark.parametrize("name", ["mnist", "cifar"])
def test_arrays_that_are_pickles_are_refused(tmp_path, trap, name, form):
    file, read = {
        "mnist": (mnist.FILES["mnist"], lambda: mnist.mnist(tmp_path, "mnist", test=False)),
        "cifar": (cifar.FILE, lambda: cifar.cifar10_jpeg75(tmp_path, torch.arange, test=False)),
    }[name]
    if form == "objects":
        keys = ("x_train", "y_train", "offsets", "labels", "header", "blob", "is_test")
        np.savez(tmp_path / file, **dict.fromkeys(keys, np.array([trap], dtype=object)))
    else:
        (tmp_path / file).write_bytes(pickle.dumps(trap) if form == "bare" else b"nonsense")
    with pytest.raises(DataError, match=rf"{file} cannot be read .*objects are pickles"):
        read()


@pytest.fixture
def hostile_archive(tmp_path):
    """One honest file among members that name places outside, devices and links."""
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / "a.tar.xz", "w:xz") as archive:
        for name in ("../escaped", "/tmp/escaped-flatmin", "honest.txt", "a/../../escaped"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/hostname"
            archive.addfile(info)
    return folder / "a.tar.xz"


def test_members_of_archives_are_read_and_go_nowhere(hostile_archive, tmp_path):
    found = dict(tars.contents(hostile_archive))
    assert found["honest.txt"] == b"abc"
    assert not {"link", "hard", "pipe"} & set(found), "what links lead to is no part of the archive"
    assert archives.member(hostile_archive.parent, "a.tar.xz", "honest.txt") == b"abc"
    with pytest.raises(DataError, match="holds no link"):
        archives.member(hostile_archive.parent, "a.tar.xz", "link")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tar.xz", "data"]
    assert not Path("/tmp/escaped-flatmin").exists()


# --- configuration


@pytest.mark.parametrize(
    "text", ["__import__('os').mkdir('sprung')", "{{ 1 + 1 }}", "${HOME}", "!!python/object/apply:os.mkdir [sprung]"]
)
@pytest.mark.parametrize(
    "field", ["task", "device", "seed", "budget", "method.name", "method.sigma", "changes.learning_rate"]
)
def test_texts_in_a_run_file_are_texts(tmp_path, monkeypatch, text, field):
    monkeypatch.chdir(tmp_path)
    values = {"task": "digits-tiny", "method.name": "sgd", field: text}
    file = tmp_path / "run.toml"
    file.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items()))
    with pytest.raises(ArgumentError) as refused:
        read_config(file, {}).check()
    assert text in str(refused.value), "as it was written"
    assert not (tmp_path / "sprung").exists()


# --- pages


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.name)
def test_templates_turn_no_escaping_off_and_only_the_policys_script_is_in_them(path):
    text = path.read_text()
    assert not re.search(r"\|\s*safe|autoescape|<[^>]*\son\w+\s*=|javascript:", text)
    assert len(re.findall("<script", text)) == (path.name == "base.html.j2")
    if "<html" in text:
        policy = text.index("Content-Security-Policy")
        assert all(policy < text.index(tag) for tag in ("<title", "<link", "<style", "<script", "<body"))


def test_whatever_is_put_into_a_template_is_escaped(monkeypatch):
    from jinja2 import DictLoader

    from flatmin_lab.report import html

    monkeypatch.setattr(html._environment(), "loader", DictLoader({"x": "<p title='{{ text }}'>{{ text }}</p>"}))
    monkeypatch.setattr(html._environment(), "cache", None)
    assert render_page("x", text="<b>'\"&") == (f"<p title='{'&lt;b&gt;&#39;&#34;&amp;'}'>&lt;b&gt;&#39;&#34;&amp;</p>")


# --- the source


def named(node):
    """``a.b.c`` of a call of a.b.c."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([*([node.id] if isinstance(node, ast.Name) else ["?"]), *reversed(parts)])


FORBIDDEN = re.compile(
    r"(eval|exec|compile|__import__|breakpoint|os\.(system|popen|exec\w+|spawn\w+|startfile)"
    r"|(pickle|cPickle|_pickle|dill|cloudpickle|joblib|marshal|shelve)\.(load|loads|Unpickler|open)"
    r"|subprocess\.(getoutput|getstatusoutput)|yaml\.(load|load_all|unsafe_load|full_load)|pickle\.Unpickler"
    r"|(pd|pandas)\.(read_pickle|eval)|torch\.hub\..*|tempfile\.mktemp|.*\.extractall|.*\.unpack_archive"
    r"|code\.interact|xml\..*|urllib\..*|requests\..*|httpx\..*)"
)


def complaints(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "subprocess"):
            yield f"names of {node.module} are imported, past this test"
        if not isinstance(node, ast.Call):
            continue
        name, given = named(node.func), {k.arg: k.value for k in node.keywords}
        is_true = {key for key, value in given.items() if isinstance(value, ast.Constant) and value.value is True}
        is_false = {key for key, value in given.items() if isinstance(value, ast.Constant) and value.value is False}
        if FORBIDDEN.fullmatch(name):
            yield name
        if "shell" in given:
            yield f"{name} with a shell"
        if name == "torch.load" and "weights_only" not in is_true:
            yield "torch.load that is not for weights only"
        if re.fullmatch(r"(np|numpy)\.load", name) and "allow_pickle" not in is_false:
            yield "numpy.load that may unpickle"
        if (
            name.rpartition(".")[2] in ("Environment", "Template")
            and "jinja2" in source
            and "autoescape" not in is_true
        ):
            yield "a template without escaping"
        if name.rpartition(".")[2] == "from_pretrained" and not (
            "trust_remote_code" in is_false and "local_files_only" in is_true
        ):
            yield "from_pretrained that may load code, or from elsewhere"


@pytest.mark.parametrize(
    "line",
    [
        "eval(x)",
        "pickle.loads(x)",
        "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=flag)",
        "os.system(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x)",
        "from pickle import loads",
        "yaml.load(x)",
        "archive.extractall(x)",
        "import jinja2; jinja2.Environment()",
        "A.from_pretrained(x, local_files_only=True)",
        "pd.read_pickle(x)",
    ],
)
def test_the_search_finds(line):
    assert list(complaints(line))


def test_nothing_in_the_source_unpickles_evaluates_or_calls_a_shell():
    assert len(SOURCES) > 200
    found = {
        f"{path.relative_to(ROOT)}: {what}" for path in SOURCES for what in complaints(path.read_text(encoding="utf-8"))
    }
    assert found == set()


def test_markup_is_made_in_these_places_alone():
    made = {p.relative_to(ROOT / "src/flatmin_lab").as_posix() for p in SOURCES if "Markup(" in p.read_text("utf-8")}
    assert made == {"report/html.py", "report/svg.py", "report/collection.py"}


def test_every_file_that_security_md_names_is_there():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for path in {*re.findall(r"`(tests/[\w/.]+)`", text), *re.findall(r"\]\((\.github/[\w/.]+)\)", text)}:
        assert (ROOT / path).is_file(), path

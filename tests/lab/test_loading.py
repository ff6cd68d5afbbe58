"""Weights from a disk: found to belong to a network, taken whole or refused with the reason, never executed."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from flatmin.errors import ArgumentError
from flatmin_lab.data.root import required
from flatmin_lab.errors import MissingPackageError, WeightsError
from flatmin_lab.models.loading import load_subject, read_weights
from flatmin_lab.models.mlp import mlp
from flatmin_lab.models.resnet_cifar import ResNetCifar
from lab_data import resnet, save
from small_runs import outcome, run_spec


def same(a, b):
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(a(x), b(x))


@pytest.mark.parametrize(("blocks", "parameters"), [(3, 269_722), (9, 853_018)])
def test_the_networks_of_the_paper_have_its_number_of_parameters(blocks, parameters):
    """0.27 M and 0.85 M, table 6 of He et al.; the shortcuts have none."""
    assert sum(p.numel() for p in ResNetCifar(blocks).parameters()) == parameters


def test_the_shortcut_takes_every_second_pixel_and_pads_channels():
    shortcut = ResNetCifar(1).layer2[0].shortcut
    x = torch.arange(2.0 * 16 * 4 * 4).view(2, 16, 4, 4)
    y = shortcut(x)
    assert y.shape == (2, 32, 2, 2)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_residual_network_is_recognised_by_its_names(tmp_path, suffix, blocks):
    model = resnet(blocks)
    subject = load_subject(save(model, tmp_path / f"weights{suffix}"))
    assert subject.kind == f"resnet{6 * blocks + 2}"
    assert subject.data == "cifar10-jpeg75"
    assert not subject.model.training
    assert same(subject.model, model)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {f"module.{k}": v for k, v in w.items()},
        lambda w: {k: v for k, v in w.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["inside a checkpoint", "of a wrapped model", "without counters"],
)
def test_what_surrounds_the_weights_is_taken_off(tmp_path, change):
    assert same(load_subject(save(resnet(), tmp_path / "w.pt", change)).model, resnet())


def test_a_perceptron_of_any_widths(tmp_path):
    model = mlp((5, 7, 3))
    subject = load_subject(save(model, tmp_path / "w.pt"))
    assert subject.kind == "mlp"
    x = torch.ones(2, 5)
    assert torch.equal(subject.model(x), model(x))


def test_types(tmp_path):
    half = load_subject(save(mlp((5, 3)).bfloat16(), tmp_path / "half.pt")).model
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    double = load_subject(save(mlp((5, 3)).double(), tmp_path / "double.pt")).model
    assert {p.dtype for p in double.parameters()} == {torch.float64}


def test_the_digest_is_that_of_the_numbers(tmp_path):
    first = load_subject(save(resnet(), tmp_path / "a.pt"))
    assert first.digest == load_subject(save(resnet(), tmp_path / "b.safetensors")).digest
    with torch.no_grad():
        first.model.bn1.running_mean[0] += 1e-3
    assert first.digest != load_subject(tmp_path / "a.pt").digest


def test_a_run_of_the_comparison(tmp_path):
    done = outcome(run_spec("nso"))
    (tmp_path / "spec.json").write_text(done.result.spec.model_dump_json())
    (tmp_path / "weights.safetensors").write_bytes(done.weights)
    subject = load_subject(tmp_path)
    assert (subject.kind, subject.data, subject.seed) == ("mlp", "digits-clean", 0)
    assert subject.notes == ("Trained by nso, digits-clean/nso-0.05/seed0.",)
    stored = torch.load(tmp_path / "weights.safetensors", weights_only=True)
    assert all(torch.equal(v, stored[k]) for k, v in subject.model.state_dict().items())
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"spec\.json cannot be read.*edited"):
        load_subject(tmp_path)


def test_a_folder_of_runs_names_one_of_them(tmp_path):
    place = tmp_path / "runs/digits-clean/nso-0.05/seed0"
    place.mkdir(parents=True)
    (place / "weights.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"holds 1 runs; name one of them: .*runs/digits-clean/nso-0\.05/seed0"):
        load_subject(tmp_path)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pt", lambda: pickle.dumps(Evil(), protocol=2), r"w\.pt cannot be read .*not executed here.*state_dict"),
        ("w.pt", lambda: b"garbage", r"w\.pt cannot be read"),
        ("w.safetensors", lambda: b"garbage", r"w\.safetensors cannot be read"),
        ("w.h5", lambda: b"", r"no file of weights that is known here: \.safetensors, \.pt, \.pth, \.bin"),
    ],
)
def test_what_cannot_be_read_is_refused_and_not_executed(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content())
    with pytest.raises(WeightsError, match=message):
        load_subject(tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "holds no state dict of named tensors"),
        ({}, "holds no state dict of named tensors"),
        (
            {"encoder.weight": torch.ones(2)},
            r"fits no network that is known here; its first weights are encoder\.weight",
        ),
        ({"0.weight": torch.ones(2)}, "its weights must be matrices"),
    ],
)
def test_what_fits_no_network_is_refused(tmp_path, weights, message):
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=message):
        load_subject(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("bn1.weight"), r"\(resnet8\): bn1\.weight is missing\. Likely cause"),
        (lambda w: w.update(extra=torch.ones(1)), "extra is not in the network"),
        (lambda w: w.update({"linear.bias": torch.ones(3)}), r"linear\.bias has shape \(3,\) and not \(10,\)"),
    ],
)
def test_weights_are_taken_whole_or_not_at_all(tmp_path, change, message):
    with pytest.raises(WeightsError, match=message):
        load_subject(save(resnet(), tmp_path / "w.pt", lambda w: [change(w), w][1]))


def test_a_model_that_is_named_must_fit(tmp_path):
    path = save(resnet(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"\(resnet20\): layer1\.1\.conv1\.weight is missing; .* and \d+ more"):
        load_subject(path, kind="resnet20")
    with pytest.raises(ArgumentError, match=r"model is 'resnet21'.*Did you mean 'resnet20'"):
        load_subject(path, kind="resnet21")


def test_nothing_there(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pt does not exist\. Name a file of weights"):
        load_subject(tmp_path / "nowhere.pt")
    with pytest.raises(WeightsError, match=r"neither a finished run .* nor a folder of transformers"):
        load_subject(tmp_path)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(MissingPackageError, match=r"transformers is not installed.*pip install 'flatmin\[hf\]'"):
        load_subject(tmp_path)
    with pytest.raises(MissingPackageError, match=r"Nothing is not installed, which helps\. .*pip install 'Nothing'"):
        required("no_such_module", "Nothing", "helps")


def test_reading_alone(tmp_path):
    assert list(read_weights(save(mlp((2, 2)), tmp_path / "w.pt"))) == ["0.weight", "0.bias"]
    assert Path(tmp_path / "w.pt").exists()

"""`flatmin certify`: of a run of a comparison, and of a recipe that trains for a certificate."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from flatmin.errors import ArgumentError, DataError
from flatmin_lab import certification, cli
from flatmin_lab.certificate_record import CertificateRecord, CertificateSweep, other_bounds
from flatmin_lab.certification import certify_recipe, certify_run, certify_sweep
from flatmin_lab.commands.present import certificate_rows
from flatmin_lab.data.mnist import mnist
from flatmin_lab.errors import StoreError
from flatmin_lab.models.small import small_cnn, small_fcn
from flatmin_lab.recipes import certificates, data
from flatmin_lab.recipes.certificates import CertificateRecipe, num_errors, run, sigma_of
from flatmin_lab.recipes.registry import CERTIFICATES, certificate_recipe
from flatmin_lab.report.certified import certified_figure
from small_runs import outcome, run_spec

SMALL = CertificateRecipe(
    "digits-fcn", data.digits, lambda: small_fcn(64, width=16), prior_epochs=6, epochs=1, batch_size=25, num_passes=2
)


@pytest.fixture(scope="module")
def small():
    return run(SMALL, *data.digits(None), seed=0)


def test_the_recipe_certifies_what_it_trained(small):
    c = small.certificate
    assert c.n == 500
    assert c.empirical.num_draws == 2 * 50
    distance = sum(float((small.posterior[n] - small.prior[n]).double().square().sum()) for n in small.prior)
    assert c.kl == pytest.approx(distance / (2 * SMALL.sigma**2), rel=1e-6)
    assert c.kl > 0
    assert "(checked)" in str(c)
    assert c.empirical.value < 0.6  # it learnt something: guessing gives 0.9
    assert other_bounds(c)["seeger-maurer"] == c.risk


def test_the_prior_never_meets_the_certified_part(small):
    """Training again with other labels on the certified part gives the same prior, bit for bit."""
    train, test = data.digits(None)
    order = torch.randperm(len(train), generator=certificates.generator(0, "prior's part"))
    held = order[500:]
    targets = train.targets.clone()
    targets[held] = (targets[held] + 1) % 10
    spoilt = run(SMALL, replace(train, targets=targets), test, seed=0)
    assert all(torch.equal(spoilt.prior[n], small.prior[n]) for n in small.prior)
    assert not all(torch.equal(spoilt.posterior[n], small.posterior[n]) for n in small.prior)
    assert spoilt.certificate.risk > 0.9


def test_a_sigma_for_each_layer():
    recipe = replace(SMALL, per_layer=True, sigma=0.1)
    model = small_fcn(64, width=16)
    sigma = sigma_of(recipe, model)
    assert sigma["1.weight"] == pytest.approx(0.1 * float(model[1].weight.detach().square().mean().sqrt()))
    assert sigma["1.bias"] == sigma["1.weight"] != sigma["3.weight"]
    found = run(recipe, *data.digits(None), seed=0)
    assert set(found.certificate.sigma) == set(found.prior)
    assert found.certificate.kl > 0


def test_a_recipe_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(certification, "certificate_recipe", lambda name: SMALL)
    notes = []
    options = {"root": None, "seed": 0, "watch": lambda *_: None, "note": notes.append}
    first = certify_recipe("digits-fcn", tmp_path / "run", **options)
    (tmp_path / "run" / "certificate.json").unlink()
    (tmp_path / "run" / "posterior.pt").unlink()
    again = certify_recipe("digits-fcn", tmp_path / "run", **options)
    assert again == first
    assert len(notes) == 1
    assert "prior.pt is there" in notes[0]
    (tmp_path / "run" / "posterior.pt").write_bytes(b"half a file")
    (tmp_path / "run" / "certificate.json").write_text("half a certificate")
    assert certify_recipe("digits-fcn", tmp_path / "run", **options) == first
    assert CertificateRecord.model_validate_json((tmp_path / "run" / "certificate.json").read_bytes()) == first
    assert "posterior.pt is made again" in notes[2]
    with pytest.raises(StoreError, match="was begun"):
        certify_recipe("digits-fcn", tmp_path / "run", **options | {"seed": 1})
    train, test = data.digits(None)
    turned = replace(SMALL, source=lambda _: (replace(train, inputs=train.inputs.flip(0)), test))
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="was begun"):
        patch.setattr(certification, "certificate_recipe", lambda name: turned)
        certify_recipe("digits-fcn", tmp_path / "run", **options)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        certify_recipe("digits-fcn", tmp_path / "other", **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, as `flatmin compare` leaves it."""
    folder = tmp_path_factory.mktemp("run")
    spec = run_spec("nso", budget=200)
    done = outcome(spec, weights=True)
    (folder / "spec.json").write_text(spec.model_dump_json())
    (folder / "weights.safetensors").write_bytes(done.weights)
    return folder


@pytest.fixture(scope="module")
def searched(finished):
    return certify_run(finished, sigmas=None, delta=0.05, num_passes=1)


@pytest.fixture(scope="module")
def given(finished, searched):
    """The same with the σ that was best, and no other."""
    return certify_run(finished, sigmas=[searched.sigma], delta=0.05, num_passes=1)


def test_a_run_is_certified_with_the_grid_of_its_method(searched):
    record = searched
    assert record.n == 200
    assert list(record.tried) == ["0.02", "0.05", "0.1", "0.15"]
    assert record.risk == min(record.tried.values())
    assert record.num_draws == 200
    assert record.hold_out > record.test_error > 0


def test_a_network_drawn_pays_for_the_search_of_its_sigma(searched, given):
    """The examples chose σ among four. With that σ given, the same network is drawn, and its bound is lower."""
    assert given.single_draw < searched.single_draw < 1
    assert (given.union, searched.union) == (0, pytest.approx(math.log(4)))
    assert searched.delta_inequality == pytest.approx(0.8 * 0.05 / 4)


def test_what_must_be_known_is_told(finished, capsys):
    assert cli.main(["certify", str(finished), "--sigma", "0.3", "--passes", "1"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Each bound holds with probability 0.95 by itself" in told
    assert "all at once with probability 0.8" in told
    assert "spoilt ones included" in told
    assert "hold-out bound of the network itself on the test data" in told


def test_certificates_at_several_sigmas_share_delta(tmp_path, monkeypatch, capsys):
    quick = replace(SMALL, prior_epochs=1)
    monkeypatch.setattr(certification, "certificate_recipe", lambda name: quick)
    asked = ["certify", "digits-fcn", "--sigma", "0.1", "0.02", "0.02", "--out", str(tmp_path)]
    assert cli.main(asked) == 0
    out = capsys.readouterr().out
    assert "hold at once with 95 %" in " ".join(out.split())
    assert (tmp_path / "certified-risk.png").stat().st_size > 10_000
    sweep = CertificateSweep.model_validate_json((tmp_path / "certificates.json").read_bytes())
    assert sweep.sigmas == tuple(r.sigma for r in sweep.records) == (0.02, 0.1)
    assert [r.confidence for r in sweep.records] == [0.975, 0.975]
    again = run(replace(quick, sigma=0.1, delta=0.025), *data.digits(None), seed=0)
    assert sweep.records[1].risk == again.certificate.risk
    assert cli.main([*asked, "--json"]) == 0
    assert CertificateSweep.model_validate_json(capsys.readouterr().out) == sweep
    with pytest.raises(ArgumentError, match="sigma is -1"):
        certify_sweep("digits-fcn", [-1.0], tmp_path, root=None, seed=0, watch=lambda *_: None, note=print)


def test_the_figure_shows_each_certificate_beside_the_test_errors(small):
    record = certification._record("digits-fcn", 0, small)
    sweep = CertificateSweep(what="digits-fcn", seed=0, confidence=0.95, sigmas=(0.01, 0.1), records=(record, record))
    axes = certified_figure([sweep, sweep]).axes
    assert len(axes) == 2
    drawn = {line.get_label(): line.get_ydata() for line in axes[0].get_lines()}
    assert list(drawn["certified"]) == [100 * record.risk] * 2
    assert list(drawn["test data, networks drawn"]) == [100 * record.stochastic_test_error] * 2
    assert list(drawn["test data, weights alone"]) == [100 * record.test_error] * 2


def test_json_alone_is_on_standard_output(finished, capsys):
    assert cli.main(["certify", str(finished), "--sigma", "0.3", "--passes", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sigma"] == 0.3
    assert found["confidence"] == 0.95
    assert found["kl"] > 0


def test_the_table_tells_certificates_from_what_is_none(given):
    rows = dict(certificate_rows(given))
    assert sum("no certificate" in name for name in rows) == 2
    assert rows["on test data, the weights themselves (no certificate)"] == f"{given.test_error:.4f}"
    assert "inequality seeger-maurer instead" not in rows
    name = next(name for name in rows if name.startswith("hold-out"))
    assert given.hold_out <= float(rows[name]) < given.hold_out + 1e-4


def test_every_recipe_is_there():
    for name in CERTIFICATES:
        recipe = certificate_recipe(name)
        assert recipe.name == name
        assert recipe.per_layer == name.endswith("per-layer")
        assert recipe.delta <= 0.05
    with pytest.raises(ArgumentError, match="Did you mean 'mnist-cnn'"):
        certificate_recipe("mnist-cnnn")


def test_images_are_read_from_the_data_root(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8), np.arange(5, dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    split = mnist(tmp_path, "mnist", test=False)
    torch.testing.assert_close(split.inputs[3, 0], (torch.tensor(x[3]) / 255 - 0.1307) / 0.3081)
    assert split.targets.tolist() == [0, 1, 2, 3, 4]
    assert len(mnist(tmp_path, "mnist", test=True)) == 2
    assert num_errors(lambda x: torch.eye(10)[torch.zeros(len(x), dtype=torch.long)], split) == 4
    assert small_cnn()(split.inputs).shape == (5, 10)
    with pytest.raises(DataError, match=r"fashion\.npz is missing"):
        data.fashion(tmp_path)


def test_an_unknown_name_is_taken_for_a_folder(capsys):
    assert cli.main(["certify", "mnist-rnn"]) == cli.BAD_INPUT
    assert "mnist-rnn does not exist" in capsys.readouterr().err

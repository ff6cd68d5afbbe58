"""The perturbation gap against the trace: smooth networks agree, networks with kinks do not, and the output says so."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from flatmin.errors import ArgumentError
from flatmin.measures import GapEstimate
from flatmin_lab.errors import WeightsError
from flatmin_lab.recipes.gap import compare, run_gap
from flatmin_lab.recipes.gap_problems import Problem, encoder, perceptron
from flatmin_lab.recipes.gap_results import GapComparison, GapPoint, verdict
from flatmin_lab.recipes.registry import GAPS, SIZES, gap_recipe
from flatmin_lab.report.gaps import gap_figure, gap_table
from graph_archives import small_archive
from lab_data import texts

PAIRS = 400


def digits(activation, pairs=PAIRS):
    """Of the toy size, with the two smallest sigmas and more pairs: a relative standard error of 2 %."""
    recipe = replace(gap_recipe(f"mlp-{activation}", "toy"), sigmas=(0.005, 0.01), num_pairs=pairs)
    return compare(recipe, recipe.problem(None, None, 0), seed=0)


@pytest.fixture(scope="module")
def found():
    return {"relu": digits("relu", 2 * PAIRS), "gelu": digits("gelu"), "tanh": digits("tanh")}


@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_smooth_networks_agree_within_monte_carlo_error(found, activation):
    smooth = found[activation]
    assert smooth.kinks is False
    assert smooth.exponent == pytest.approx(2, abs=0.1)
    for point in smooth.points:
        assert abs(point.score) < 3
        assert point.difference_stderr < 0.03
    assert smooth.rss < 6 * smooth.chance_rss
    assert "The noise meets no kinks" in smooth.verdict
    assert "agree within 3 standard errors up to σ = 0.01" in smooth.verdict


def test_networks_with_relu_do_not_however_small_the_noise_is(found):
    """The trace of second derivatives is exact here, and some 10 % below what the noise meets: 4 standard errors."""
    kinked = found["relu"]
    assert kinked.kinks is True
    assert kinked.exponent == pytest.approx(-0.5, abs=0.5)
    assert kinked.trace_stderr == 0
    for point in kinked.points:
        assert point.score > 4
        assert 0.05 < point.difference < 0.3
    assert kinked.smoothed_trace > kinked.trace + 4 * kinked.smoothed_stderr
    assert kinked.rss > 10 * kinked.chance_rss
    assert "meets kinks, however small it is, and second derivatives do not see them" in kinked.verdict
    assert "beyond chance" in kinked.verdict


def test_only_weights_are_perturbed_and_all_data_are_measured(found):
    relu = found["relu"]
    assert relu.num_perturbed == 64 * 32 + 32 * 10
    assert relu.num_examples == 1000
    assert relu.accuracy > 0.95
    assert relu.loss < 0.2


def test_a_quadratic_agrees_exactly():
    """f = Σ aᵢ wᵢ²/2: the trace is exact, and each pair's rise has mean σ²/2 Σ aᵢ."""
    a = torch.arange(1.0, 6, dtype=torch.float64)

    class Bowl(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5, dtype=torch.float64))
            self.bias = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x):
            return ((a * self.weight.square()).sum() / 2 + 50 * self.bias.square().sum()) * x.new_ones(len(x), 1)

    zeros = torch.zeros(4, dtype=torch.float64)
    batch = lambda numbers: (zeros[numbers], zeros[numbers].long())  # noqa: E731
    problem = Problem(Bowl(), "bowl", "none", 4, batch, lambda out, _: out.mean(), ("weight",))
    recipe = replace(gap_recipe("mlp-gelu", "toy"), epochs=0, num_pairs=400)
    found = compare(recipe, problem, seed=0)
    assert found.trace == pytest.approx(15)
    assert found.num_perturbed == 5
    for point in found.points:
        assert point.approximation == pytest.approx(point.sigma**2 / 2 * 15)
        assert abs(point.score) < 4
        assert point.gap_stderr == pytest.approx(point.sigma**2 * (55 / 2 / 400) ** 0.5, rel=0.15)
    assert found.kinks is False


def test_errors_of_a_point():
    samples = torch.tensor([1.0, 3.0])
    gap = GapEstimate(
        value=2.0, stderr=0.3, samples=samples, sigma=2.0, num_samples=2, clean_loss=1.0, noise="gaussian"
    )
    point = GapPoint.of(gap, trace=0.5, trace_stderr=0.2)
    assert (point.approximation, point.approximation_stderr) == (1.0, 0.4)
    assert point.difference == 0.5
    assert point.difference_stderr == pytest.approx(((0.4 / 2) ** 2 + (1.0 * 0.3 / 4) ** 2) ** 0.5)
    assert point.score == pytest.approx(1 / 0.5)
    swallowed = GapPoint.of(replace(gap, value=0.0, stderr=0.0), trace=0.5, trace_stderr=0.25)  # by rounding
    assert math.isnan(swallowed.difference)
    assert swallowed.score == -2


class Shape:
    def __init__(self, kinks):
        self.kinks = kinks


def at(sigma, score):
    return GapPoint(
        sigma=sigma,
        gap=1.0,
        gap_stderr=0.1,
        approximation=1 - 0.1 * score,
        approximation_stderr=0.0,
        difference=0.1 * score,
        difference_stderr=0.1,
        score=score,
    )


def test_what_follows_is_said():
    points = (at(0.1, 1.0), at(0.2, 1.0), at(0.4, 9.0), at(0.8, 1.0))
    assert verdict(points, Shape(False)).endswith("up to σ = 0.2; beyond it, higher orders show.")
    assert verdict(points[:2], Shape(False)).endswith("up to σ = 0.2.")
    assert "undecided: gap" in verdict(points, Shape(None))
    assert verdict(points[2:], Shape(False)).endswith("σ reaches too far. Take smaller ones.")
    assert "differ by 10 ± 10 % of the gap at σ = 0.1, which chance alone may make" in verdict(points, Shape(True))


def test_is_stored_as_json_and_shown(found):
    relu = found["relu"]
    assert GapComparison.model_validate_json(relu.model_dump_json()) == relu
    assert json.loads(relu.model_dump_json())["points"][0]["sigma"] == 0.005
    console = Console(width=200)
    with console.capture() as captured:
        console.print(gap_table(relu))
    shown = captured.get()
    assert "perceptron 64-32-10, relu on digits (1,000 examples), seed 0" in shown
    assert "kinks (exponent" in shown
    assert "Relative residual sum of squares" in shown


def test_figure(found):
    figure = gap_figure(list(found.values()))
    left, right = figure.axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["mlp-relu", "mlp-gelu", "mlp-tanh"]
    drawn = [list(line.get_ydata()) for line in left.lines]
    for comparison in found.values():
        assert [p.approximation for p in comparison.points] in drawn
        assert [p.gap for p in comparison.points] in drawn
    beside = [list(line.get_ydata()) for line in right.lines]
    assert all([100 * p.difference for p in c.points] in beside for c in found.values())
    assert right.get_ylabel() == "% of the gap"


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_graph_network_on_ego_networks(tmp_path, activation):
    seen = []
    found = run_gap(f"gcn-{activation}", "toy", small_archive(tmp_path), watch=lambda *told: seen.append(told))
    assert found.num_examples == 9
    assert found.num_perturbed == 492 * 16 + 16 * 16 + 16 * 3
    assert [stage for stage, _, _ in seen][-1] == "gap"
    assert {stage for stage, _, _ in seen} == {"training", "trace", "gap"}
    assert found.data == "ego networks of three fields"
    if activation == "gelu":
        assert abs(found.points[0].score) < 4


def test_the_encoder(tmp_path, monkeypatch):
    """Its weights come from a folder; patterns leave out embeddings, normalisations and the pooler."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(vocab_size=12, max_position_embeddings=32, **small)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "quote", "second", "1", "2", "3", '"']
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    found = run_gap("bert", "toy", texts(tmp_path), weights=tmp_path / "bert")
    assert found.num_examples == 8
    assert found.num_perturbed == 2 * (4 * 64 + 2 * 96) + 16


def test_the_encoder_needs_a_folder(tmp_path):
    with pytest.raises(ArgumentError, match=r"the encoder needs pretrained weights, and no folder is named.*weights="):
        encoder(texts(tmp_path), None, 0, count=4)
    with pytest.raises(WeightsError, match="nowhere does not exist"):
        encoder(texts(tmp_path), tmp_path / "nowhere", 0, count=4)


def test_some_of_a_file_that_is_sorted_by_class_are_of_every_class(tmp_path):
    y = np.arange(10, dtype=np.uint8).repeat(100)
    x = np.zeros((1000, 28, 28), dtype=np.uint8) + y[:, None, None]
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x[:1], y_test=y[:1])
    inputs, targets = perceptron(tmp_path, 0, activation="relu", data="mnist", count=100).measured()[0]
    assert set(targets.tolist()) == set(range(10))
    pixels = (inputs[:, 0] * 0.3081 + 0.1307) * 255
    torch.testing.assert_close(pixels, targets.double(), atol=1e-3, rtol=0)


def test_equal_seeds_give_equal_networks():
    weights = [perceptron(None, seed, activation="relu", data="digits").model[0].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_every_recipe_is_there():
    for name in GAPS:
        for size in SIZES:
            recipe = gap_recipe(name, size)
            assert (recipe.name, recipe.size) == (name, size)
            assert list(recipe.sigmas) == sorted(recipe.sigmas)
    assert gap_recipe("mlp-relu", "paper").sigmas[-21:] == tuple(round(0.001 * i, 3) for i in range(20, 41))
    assert gap_recipe("bert", "paper").sigmas[-10:] == tuple(round(0.0001 * i, 4) for i in range(71, 81))
    with pytest.raises(ArgumentError, match="Did you mean 'gcn-relu'"):
        gap_recipe("gcn-rleu", "toy")
    with pytest.raises(ArgumentError, match="size is 'large'"):
        gap_recipe("gcn-relu", "large")

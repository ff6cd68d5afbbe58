"""Certificates of small networks: closed forms, and every refusal."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from curvature_cases import everything
from flatmin.bounds import (
    catoni,
    certify,
    certify_draw,
    dziugaite_roy,
    dziugaite_roy_variance,
    kl_divergence,
    kl_inverse,
    posterior_risk,
)
from flatmin.bounds.monte_carlo import batch_mean, clamped_cross_entropy, zero_one
from flatmin.bounds.samples import check_disjoint
from flatmin.curvature.risk import EmpiricalRisk
from flatmin.errors import ArgumentError, ArgumentTypeError, NonFiniteError


def line(seed=0, n=400, weight=8.0):
    """Two classes split at zero by one weight, and a tenth of the labels wrong."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, generator=g, dtype=torch.float64) * 2 - 1
    y = (x[:, 0] > 0).long() ^ (torch.rand(n, generator=g) < 0.1).long()
    model = nn.Linear(1, 2).double()
    prior = {"weight": torch.zeros(2, 1).double(), "bias": torch.zeros(2).double()}
    model.load_state_dict({"weight": torch.tensor([[-weight], [weight]]), "bias": torch.zeros(2)})
    return model, prior, list(zip(x.split(20), y.split(20)))


def normal(z):
    return 0.5 * math.erfc(-z / math.sqrt(2))


def risk_of_the_posterior(x, y, sigma, weight=8.0):
    """P[wrong] in closed form: the margin of the two outputs is normal with variance 2σ²(x² + 1)."""
    up = torch.tensor([normal(2 * weight * float(v) / (sigma * math.sqrt(2 * (v * v + 1)))) for v in x[:, 0]])
    return float(torch.where(y == 1, 1 - up, up).mean())


def test_the_posterior_risk_is_unbiased_and_its_upper_end_holds():
    model, _, batches = line()
    x, y = (torch.cat(parts) for parts in zip(*batches))
    exact = risk_of_the_posterior(x, y, 5.0)
    sigma = {"weight": 5.0, "bias": 5.0}
    risk = EmpiricalRisk(model, batch_mean(zero_one), batches)
    found = [posterior_risk(risk, sigma, num_passes=2, delta=0.1, seed=s) for s in range(60)]
    values = torch.tensor([f.value for f in found], dtype=torch.float64)
    assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(len(values))
    assert sum(f.upper >= exact for f in found) >= 54
    assert (found[0].num_draws, found[0].num_examples) == (40, 400)
    assert found[0].upper == pytest.approx(kl_inverse(found[0].value, math.log(10) / 40), rel=1e-9)


def test_ragged_batches_weigh_by_their_size():
    model, _, batches = line(n=410)
    x, y = (torch.cat(parts) for parts in zip(*batches))
    risk = EmpiricalRisk(model, batch_mean(zero_one), batches)
    sigma = {"weight": 1e-9, "bias": 1e-9}
    found = posterior_risk(risk, sigma, num_passes=1, delta=0.1, seed=0)
    value = float((model(x).argmax(1) != y).double().mean())
    assert found.value == pytest.approx(value)
    assert found.num_draws == 21
    assert found.upper == pytest.approx(kl_inverse(value / (420 / 410), math.log(10) / 21) * 420 / 410)


def test_kl_of_gaussians_with_different_widths():
    mean = {"a": torch.randn(3, 2), "b": torch.randn(4)}
    prior = {name: torch.randn_like(tensor) for name, tensor in mean.items()}
    sigma, wide = {"a": 0.3, "b": 0.7}, {"a": 0.5, "b": 0.2}
    exact = sum(
        torch.distributions.kl_divergence(
            torch.distributions.Normal(mean[n].double(), sigma[n]),
            torch.distributions.Normal(prior[n].double(), wide[n]),
        ).sum()
        for n in mean
    )
    assert kl_divergence(mean, prior, sigma, wide) == pytest.approx(float(exact))


def test_a_certificate_adds_up():
    model, prior, batches = line()
    c = certify(model, prior=prior, batches=batches, sigma=4.0, delta=0.05, num_passes=3)
    assert c.kl == pytest.approx(128 / (2 * 16))
    assert c.n == 400
    assert c.empirical.delta + c.delta_bound == pytest.approx(0.05)
    assert c.risk == pytest.approx(kl_inverse(c.empirical.upper, (c.kl + math.log(2 * 20 / c.delta_bound)) / 400))
    assert sum(v for k, v in c.terms.items() if k != "KL / n") == pytest.approx(c.risk)
    assert not c.vacuous
    assert "0.95" in repr(c)
    assert "classification" in str(c) or "zero-one" in str(c)


def test_a_search_pays_for_itself():
    model, prior, batches = line()
    alone = certify(model, prior=prior, batches=batches, sigma=4.0)
    grid = certify(model, prior=prior, batches=batches, sigma=[4.0, 0.01, 100.0])
    assert grid.sigma == 4.0
    assert grid.num_searched == 3
    assert len(grid.tried) == 3
    assert grid.empirical.delta + grid.delta_bound == pytest.approx(0.05 / 3)
    assert grid.risk > alone.risk
    assert (alone.union, grid.union) == (0, pytest.approx(math.log(3)))
    assert grid.terms["union / n"] == pytest.approx(math.log(3) / 400)
    told = " ".join(str(grid).split())
    assert "3 posteriors searched" in told
    assert "1.1 nats for what was searched" in told
    assert "the 3 candidates for sigma" in told


def test_posteriors_of_one_prior_share_the_draws_alone():
    model, prior, batches = line()
    c = certify(model, prior=prior, batches=batches, sigma=[4.0, 2.0], prior_sigma=3.0, delta=0.05)
    assert c.delta_bound == pytest.approx(0.8 * 0.05)
    assert c.empirical.delta == pytest.approx(0.2 * 0.05 / 2)
    assert c.union == 0


def test_what_an_inequality_searches_is_shown():
    model, prior, batches = line()
    c = certify(model, prior=prior, batches=batches, sigma=[4.0, 2.0], bound="catoni")
    assert c.union == pytest.approx(math.log(2 * 21))
    assert c.risk == catoni(c.empirical.upper, c.kl, 400, c.delta_bound)


def test_dziugaite_and_roy_round_the_prior_and_pay_for_its_choice():
    model, prior, batches = line(weight=0.5)
    c = certify(model, prior=prior, batches=batches, sigma=[0.2, 0.1], prior_sigma=0.15, bound="dziugaite-roy")
    variance = dziugaite_roy_variance(0.15**2)
    assert c.prior_sigma == pytest.approx(math.sqrt(variance))
    assert c.prior_sigma == pytest.approx(0.15, rel=0.005)
    assert c.delta_bound == pytest.approx(0.04)  # the posterior is free, and the prior is paid for inside
    assert c.union == pytest.approx(math.log(math.pi**2 / 6) + 2 * math.log(100 * math.log(0.1 / variance)))
    assert c.risk == dziugaite_roy(c.empirical.upper, c.kl, 400, c.delta_bound, prior_variance=variance)


def test_standard_deviations_by_name():
    model, prior, batches = line()
    c = certify(model, prior=prior, batches=batches, sigma={"weight": 4.0, "*": 1.0}, prior_sigma=2.0)
    expected = 128 / (2 * 4) + 0.5 * 2 * (4 - 1 - math.log(4)) + 0.5 * 2 * (0.25 - 1 - math.log(0.25))
    assert c.kl == pytest.approx(expected)


def test_says_vacuous_when_it_is():
    model, prior, batches = line(weight=1e4)
    c = certify(model, prior=prior, batches=batches, sigma=0.01)
    assert c.vacuous
    assert "Vacuous" in str(c)


def test_clamped_cross_entropy_lies_in_the_unit_interval():
    logits = torch.tensor([[50.0, -50.0], [0.0, 0.0]])
    torch.testing.assert_close(
        clamped_cross_entropy(logits, torch.tensor([1, 0])), torch.tensor([1.0, math.log(2) / math.log(1e4)])
    )
    model, prior, batches = line()
    c = certify(model, prior=prior, batches=batches, sigma=4.0, loss="cross-entropy")
    assert 0 < c.empirical.value < c.risk < 1


def test_one_network_drawn():
    model, prior, batches = line()
    found = everything(model)
    c, drawn = certify_draw(model, prior=prior, batches=batches, sigma=4.0, seed=3)
    assert everything(model) == found
    x, y = (torch.cat(parts) for parts in zip(*batches))
    assert c.empirical.value == pytest.approx(
        float((nn.functional.linear(x, drawn["weight"], drawn["bias"]).argmax(1) != y).double().mean())
    )
    laws = [
        torch.distributions.Normal(center[n].double(), 4.0) for center in (model.state_dict(), prior) for n in drawn
    ]
    inside, outside = (
        sum(law.log_prob(drawn[n]).sum() for law, n in zip(laws[i : i + 2], drawn, strict=True)) for i in (0, 2)
    )
    assert c.kl == pytest.approx(float(inside - outside))
    assert c.risk == pytest.approx(kl_inverse(c.empirical.value, max(0, c.kl + math.log(40 / 0.05)) / 400))
    chosen, same = certify_draw(model, prior=prior, batches=batches, sigma=4.0, seed=3, num_searched=6)
    assert all(torch.equal(same[name], drawn[name]) for name in drawn)
    assert chosen.risk == pytest.approx(kl_inverse(c.empirical.value, max(0, c.kl + math.log(6 * 40 / 0.05)) / 400))
    assert (chosen.delta, chosen.delta_bound, chosen.union) == (0.05, 0.05 / 6, math.log(6))
    assert "the 6 candidates for sigma" in " ".join(str(chosen).split())
    with pytest.raises(ArgumentError, match="num_searched is 0"):
        certify_draw(model, prior=prior, batches=batches, sigma=4.0, num_searched=0)


def test_is_invisible():
    model, prior, batches = line()
    x, y = (torch.cat(parts) for parts in zip(*batches))
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(0))
    found = everything(model, [loader.generator])
    certify(model, prior=prior, batches=loader, sigma=4.0, prior_batches=[(x + 5, y)])
    assert everything(model, [loader.generator]) == found


class Augmented(Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, i):
        return torch.tensor([i / 50 - 1]).double() + 0.01 * torch.randn(1).double(), i // 50


class Drawn:
    """Other data at each pass."""

    def __init__(self, scale=0.01):
        self.scale = scale

    def __iter__(self):
        for x, y in line()[2]:
            yield x + self.scale * torch.randn_like(x), y


class Stream(IterableDataset):
    def __iter__(self):
        return ((torch.rand(1).double(), i % 2) for i in range(40))


class Counted(Stream):
    """A stream that knows its length, which torch's data sets of this kind may."""

    def __len__(self):
        return 40


def test_examples_are_known_whatever_they_share_with_their_batch():
    """Positions (1, 3) of a batch belong to all of its examples, wherever in the batch they are."""
    x, positions = torch.randn(6, 3), torch.arange(3)[None]
    first = [{"x": x[:4], "positions": positions, "labels": torch.arange(4)}]
    shifted = [{"x": x[[5, 0, 3]], "positions": positions, "labels": torch.tensor([5, 0, 3])}]
    with pytest.raises(ArgumentError, match="2 of the examples"):
        check_disjoint(shifted, first)


def test_data_that_can_be_read_again_need_not_be_a_list():
    model, prior, batches = line()
    again = certify(model, prior=prior, batches=Drawn(0.0), sigma=4.0)
    assert again.risk == certify(model, prior=prior, batches=batches, sigma=4.0).risk


class Large(Dataset):
    """Arrays of which only one of many numbers is augmented, where repr() would leave it out."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        pixels = np.full(5000, float(i))
        pixels[2500] += float(torch.rand(()))
        return pixels, i % 2


class Nowhere(nn.Linear):
    """NaN for all."""

    def forward(self, x):
        return super().forward(x) * math.nan


def mixed(items):
    x, y = default_collate(items)
    return x + 0.01 * torch.randn_like(x), y


def test_outputs_that_are_no_numbers_are_errors():
    model = Nowhere(1, 2).double()
    for loss in ("zero-one", "cross-entropy"):
        c = certify(model, prior=copy.deepcopy(model.state_dict()), batches=line()[2], sigma=1.0, loss=loss)
        assert c.empirical.value == 1


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
@pytest.mark.parametrize("loss", ["zero-one", "cross-entropy"])
def test_class_numbers_of_any_integer_type(loss, dtype):
    model, prior, batches = line()
    same = [(x, y.to(dtype)) for x, y in batches]
    expected = certify(model, prior=prior, batches=batches, sigma=4.0, loss=loss).risk
    assert certify(model, prior=prior, batches=same, sigma=4.0, loss=loss).risk == expected


def test_examples_of_another_precision_are_known_again():
    model, prior, batches = line()
    known = [(x.float().double(), y) for x, y in batches]
    with pytest.raises(ArgumentError, match="400 of the examples"):
        certify(model, prior=prior, batches=known, sigma=4.0, prior_batches=[(x.float(), y.int()) for x, y in known])


def test_the_largest_and_smallest_sigma():
    model, prior, batches = line()
    assert certify(model, prior=prior, batches=batches, sigma=1e200).kl == 0
    assert certify(model, prior=prior, batches=batches, sigma=1.0, prior_sigma=1e200).vacuous


def test_constants_that_no_state_holds_may_be_in_the_prior():
    model = nn.Sequential(nn.Linear(1, 2)).double()
    model.register_buffer("scale", torch.ones(3), persistent=False)
    model.register_buffer("steps", torch.zeros(1, dtype=torch.long))
    batches = line()[2]
    with pytest.raises(ArgumentError, match=r"'scale' is not in the prior.*named_buffers"):
        certify(model, prior=copy.deepcopy(model.state_dict()), batches=batches, sigma=1.0)
    prior = copy.deepcopy({**model.state_dict(), **dict(model.named_buffers())})
    assert certify(model, prior=prior, batches=batches, sigma=1.0).n == 400
    model.steps += 1
    with pytest.raises(ArgumentError, match="'steps' differs"):
        certify(model, prior=prior, batches=batches, sigma=1.0)


def test_what_is_printed_holds():
    model, prior, batches = line()
    c = certify(model, prior=prior, batches=batches, sigma=4.0, delta=1e-6)
    told = re.search(r"probability (\S+), .* at most (\S+)\. ", " ".join(str(c).split()))
    assert told is not None
    assert float(told[1]) <= 1 - 1e-6
    assert c.risk <= float(told[2]) < c.risk + 1e-3
    assert told[1] in repr(c)
    assert told[2] in repr(c)


def shared_with_the_model():
    model, _, _ = line()
    return {"model": model, "prior": model.state_dict()}


def wrong(**changes):
    model, prior, batches = line()
    given = {"prior": prior, "batches": batches, "sigma": 4.0} | changes
    return certify(given.pop("model", model), **given)


def with_batch_norm():
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2)).double()
    prior = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model[1].running_mean.add_(1)
    return {"model": model, "prior": prior}


def with_batch_statistics():
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2, track_running_stats=False)).double()
    return {"model": model, "prior": {name: tensor.clone() for name, tensor in model.state_dict().items()}}


def frozen():
    model, _, _ = line()
    model.bias.requires_grad_(False)
    model.bias.data.add_(1)
    return {"model": model}


def poisoned():
    model, _, _ = line()
    model.bias.data[0] = float("nan")
    return {"model": model}


x20, y20 = line()[2][0]
TWENTY = TensorDataset(x20, y20)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"delta": 1.5}, ArgumentError, "delta is 1.5"),
        ({"delta": "0.05"}, ArgumentTypeError, "delta is '0.05', which is no number"),
        (shared_with_the_model(), ArgumentError, "'weight' of the prior is the model's own tensor.*deepcopy"),
        ({"prior": {"weight": np.zeros((2, 1)), "bias": 0}}, ArgumentTypeError, "'weight' is a ndarray in the prior"),
        ({"sigma": {"wieght": 1.0, "*": 2.0}}, ArgumentError, "names the parameter 'wieght'.*misprint"),
        ({"sigma": {0: 1.0}}, ArgumentTypeError, "sigma has the key 0"),
        ({"sigma": 1e-200}, ArgumentError, "KL.* is inf.*1e-200 and more"),
        ({"sigma": [4.0, -1.0]}, ArgumentError, "sigma is -1"),
        ({"batches": [(x20, y20 + 5)]}, ArgumentError, "a target is [56], but .* classes 0 to 1"),
        ({"batches": [(x20, y20[:10])]}, ArgumentError, "20 outputs for 10 class numbers"),
        ({"batches": [(x20, y20)] * 3}, ArgumentError, "the same batch comes 3 times in one pass"),
        (
            {"batches": DataLoader(Subset(TWENTY, [0, 1, 2, 3, 0, 1, 2, 3]), batch_size=4)},
            ArgumentError,
            "one example of the Subset comes 2 times",
        ),
        (
            {"batches": DataLoader(TWENTY, batch_sampler=BatchSampler([*range(20), 7, 7], 11, drop_last=False))},
            ArgumentError,
            "one example of the TensorDataset comes 3 times",
        ),
        ({"batches": DataLoader(TWENTY, batch_size=5, collate_fn=mixed)}, ArgumentError, "collate_fn makes another"),
        ({"batches": DataLoader(Large(), batch_size=5)}, ArgumentError, "example 0 is another one"),
        ({"prior_batches": []}, ArgumentError, "prior_batches is empty"),
        (
            {"prior_batches": DataLoader(Augmented(), batch_size=10)},
            ArgumentError,
            "100 of the 100 examples of the prior are others",
        ),
        ({"loss": lambda out, y: torch.zeros(3)}, ArgumentTypeError, "returned 3 numbers for 20 examples"),
        ({"loss": lambda out, y: out[:, 0] * math.nan}, NonFiniteError, "loss of an example is NaN"),
        ({"sigma": 0.0}, ArgumentError, "sigma is 0"),
        ({"sigma": []}, ArgumentError, "empty sequence"),
        ({"sigma": {"bias": 1.0}}, ArgumentError, "'weight' fits none.*'\\*'"),
        ({"bound": "seeger"}, ArgumentError, "Did you mean 'seeger-maurer'"),
        ({"loss": "zero-two"}, ArgumentError, "Did you mean 'zero-one'"),
        ({"loss": 3}, ArgumentTypeError, "loss is 3"),
        (
            {"loss": lambda out, y: nn.functional.cross_entropy(out, y, reduction="none")},
            ArgumentError,
            r"losses run from",
        ),
        ({"loss": lambda out, y: (out * 0).mean()}, ArgumentTypeError, "reduction='none'"),
        ({"prior": {"weight": torch.zeros(2, 1)}}, ArgumentError, "no entry 'bias'"),
        ({"prior": {"weight": torch.zeros(1, 2), "bias": torch.zeros(2)}}, ArgumentError, r"\(1, 2\) in the prior"),
        ({"prior": nn.Linear(1, 2)}, ArgumentTypeError, r"state_dict\(\)"),
        ({"prior": {"weight": torch.full((2, 1), math.nan), "bias": torch.zeros(2)}}, NonFiniteError, "in the prior"),
        (poisoned(), NonFiniteError, "'bias' holds NaN or infinity in the model"),
        (with_batch_norm(), ArgumentError, "running_mean' differs.*Freeze"),
        (
            with_batch_statistics(),
            ArgumentError,
            "'1' is a BatchNorm1d without running statistics.*layer norm",
        ),
        ({"batches": Drawn()}, ArgumentError, "400 of 400 examples are others in a second pass.*as they are"),
        ({"batches": DataLoader(Stream(), batch_size=10)}, ArgumentError, "40 of 40 examples are others"),
        ({"batches": DataLoader(Counted(), batch_size=10)}, ArgumentError, "40 of 40 examples are others"),
        (
            {"bound": "dziugaite-roy", "prior_sigma": {"weight": 0.1, "*": 0.2}},
            ArgumentTypeError,
            "for a prior of one standard deviation",
        ),
        ({"model": line()[0].bfloat16()}, ArgumentError, r"'weight' has weights of torch.bfloat16.*model.float\(\)"),
        (frozen(), ArgumentError, "'bias' is frozen but differs"),
        ({"batches": [(x20[:5], y20[:5])]}, ArgumentError, "5 examples, but at least 8"),
        ({"prior_batches": [(x20, y20)]}, ArgumentError, "20 of the examples.*Split"),
        (
            {"batches": DataLoader(Augmented(), batch_size=10)},
            ArgumentError,
            "example 0 is another one.*without augmentation",
        ),
        (
            {
                "batches": DataLoader(
                    TensorDataset(x20, y20), sampler=RandomSampler(range(20), replacement=True, num_samples=40)
                )
            },
            ArgumentError,
            "one example of the TensorDataset comes . times in one pass",
        ),
        (
            {
                "model": nn.Linear(1, 3).double(),
                "prior": nn.Linear(1, 3).double().state_dict(),
                "batches": [(x20, y20.double())],
            },
            ArgumentTypeError,
            "no class numbers",
        ),
    ],
)
def test_messages(changes, error, message):
    with pytest.raises(error, match=message):
        wrong(**changes)

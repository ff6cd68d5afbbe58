r"""Training for a certificate: a prior learnt on one part of the data, a posterior on all, a bound on the other part.

1. The training data are split once. On the first part the prior's weights W₀ are trained by NSO at the posterior's σ.
2. From W₀ the posterior's weights W are trained on all of them by NSO, which minimises exactly the expected loss of
   N(W, σ²), with the price that the bound puts on distance. That of the λ-bound at λ = 1 for cross-entropy clamped at
   p: ln(1/p) KL(Q‖P) / n with KL = ‖W - W₀‖² / 2σ² and n the examples of the second part: an L2-SP penalty.
3. The second part, which the prior has never met, certifies W. The test data are looked at once, for comparison; the
   bound does not need them.

σ is fixed beforehand, for every network and data set alike; nothing is tuned on the second part.

- Pérez-Ortiz, M. et al. (2021). Tighter risk certificates for neural networks. JMLR 22 (learns a variance per weight).
- Ambroladze, Parrado-Hernández, Shawe-Taylor (2006). Tighter PAC-Bayes bounds (data-dependent priors).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatmin.bounds import Certificate, binomial, certify, certify_draw, posterior_risk, zero_one
from flatmin.bounds.monte_carlo import batch_mean
from flatmin.bounds.posterior import per_parameter
from flatmin.curvature.risk import EmpiricalRisk
from flatmin_lab.data.splits import Split
from flatmin_lab.recipes.certificate_training import fit
from flatmin_lab.seeds import derive, generator

if TYPE_CHECKING:
    from flatmin_lab.recipes.data import Source
    from flatmin_lab.recipes.outcome import Watch


@dataclass(frozen=True)
class CertificateRecipe:
    """How to train and certify.

    Attributes:
        name: As on the command line.
        source: Where training and test data come from.
        network: A freshly initialised network, drawn from torch's global generator.
        sigma: Standard deviation of posterior and prior; where ``per_layer``, in units of the root mean square of each
            weight tensor of W₀.
        per_layer: Whether each parameter tensor has a σ of its own, by the prior's weights.
        prior_share: Share of the training data that the prior is trained on.
        prior_epochs: Passes of the prior's training over its part.
        epochs: Passes of the posterior's training over all training data.
        learning_rate: Of SGD with momentum 0.9; falls to zero as a cosine.
        batch_size: Of training.
        delta: One minus the confidence.
        num_passes: Passes for the empirical risk.
        draws_batch: Examples that share one draw of the weights there.
    """

    name: str
    source: Source
    network: Callable[[], nn.Module]
    sigma: float = 0.01
    per_layer: bool = False
    prior_share: float = 0.5
    prior_epochs: int = 15
    epochs: int = 4
    learning_rate: float = 0.05
    batch_size: int = 100
    delta: float = 0.05
    num_passes: int = 15
    draws_batch: int = 10


Keep = Callable[[str, Callable[[], "dict[str, Tensor]"]], "dict[str, Tensor]"]
"""Given a name and what makes weights, returns them: made now, or what was kept of an earlier time."""


@dataclass(frozen=True)
class Certified:
    """What a recipe gives.

    Attributes:
        certificate: The bound for the 0-1 error of the stochastic predictor.
        cross_entropy: That for the clamped cross-entropy.
        test_error: 0-1 error on the test data of the weights W themselves.
        stochastic_test_error: That of networks drawn from the posterior, by Monte Carlo.
        hold_out: The binomial bound for the prior's network W₀ on the second part, which needs no PAC-Bayes.
        single_draw: The bound for one network drawn.
        prior: W₀.
        posterior: W.
    """

    certificate: Certificate
    cross_entropy: Certificate
    test_error: float
    stochastic_test_error: float
    hold_out: float
    single_draw: Certificate
    prior: dict[str, Tensor] = field(repr=False)
    posterior: dict[str, Tensor] = field(repr=False)


def run(
    recipe: CertificateRecipe,
    train: Split,
    test: Split,
    *,
    seed: int,
    watch: Watch = lambda *_: None,
    keep: Keep = lambda _, make: make(),
) -> Certified:
    """Train the prior and the posterior, and certify.

    Args:
        recipe: How.
        train: Training data.
        test: Test data, for comparison.
        seed: Seed of everything random.
        watch: Told of the progress.
        keep: Keeps the weights W₀ (``"prior"``) and W (``"posterior"``).
    """
    order = torch.randperm(len(train), generator=generator(seed, "prior's part"))
    first, second = order.tensor_split([int(recipe.prior_share * len(train))])
    before, held = (Split(train.inputs[i], train.targets[i]) for i in (first, second))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initial weights"))
        model = recipe.network()

    def prior_weights() -> dict[str, Tensor]:
        # A σ by layer is measured in units of W₀, which is not there yet: the initial weights stand in.
        fit(model, before, recipe, sigma=sigma_of(recipe, model), seed=seed, watch=watch)
        return _copied(model)

    def posterior_weights() -> dict[str, Tensor]:
        fit(model, train, recipe, sigma=sigma, anchor=prior, seed=seed, watch=watch)
        return _copied(model)

    prior = keep("prior", prior_weights)
    model.load_state_dict(prior)
    sigma = sigma_of(recipe, model)
    model.load_state_dict(keep("posterior", posterior_weights))
    return certified(recipe, model, prior, before, held, test, sigma=sigma, seed=seed, watch=watch)


def certified(
    recipe: CertificateRecipe,
    model: nn.Module,
    prior: Mapping[str, Tensor],
    before: Split,
    held: Split,
    test: Split,
    *,
    sigma: Mapping[str, float] | float,
    seed: int,
    watch: Watch,
) -> Certified:
    """Certify trained weights on the part that the prior has not met, and look at the test data for comparison."""
    small, large = held.batches(recipe.draws_batch), held.batches(1000)
    common: dict[str, Any] = {"prior": prior, "sigma": sigma, "delta": recipe.delta, "seed": derive(seed, "draws")}
    watch("certificate", 0, 4)
    certificate = certify(
        model, batches=small, num_passes=recipe.num_passes, prior_batches=before.batches(1000), **common
    )
    watch("certificate", 1, 4)
    cross_entropy = certify(model, batches=small, num_passes=recipe.num_passes, loss="cross-entropy", **common)
    watch("certificate", 2, 4)
    single, _ = certify_draw(model, batches=large, **common)
    draws_seed = derive(seed, "test draws")
    noisy = noisy_error(model, test, sigma, batch_size=recipe.draws_batch, num_passes=1, seed=draws_seed)
    watch("certificate", 3, 4)
    posterior = _copied(model)
    error = num_errors(model, test) / len(test)
    model.load_state_dict(dict(prior))
    hold_out = binomial(num_errors(model, held), len(held), recipe.delta)
    model.load_state_dict(posterior)
    watch("certificate", 4, 4)
    return Certified(
        certificate=certificate,
        cross_entropy=cross_entropy,
        test_error=error,
        stochastic_test_error=noisy,
        hold_out=hold_out,
        single_draw=single,
        prior=dict(prior),
        posterior=posterior,
    )


@torch.no_grad()
def num_errors(model: nn.Module, data: Split) -> int:
    """Return how many examples ``model`` misclassifies."""
    wrong = [(model(x).argmax(1) != y).sum() for x, y in data.batches(1000)]
    return int(torch.stack(wrong).sum())


def noisy_error(
    model: nn.Module,
    data: Split,
    sigma: Mapping[str, float] | float,
    *,
    batch_size: int,
    num_passes: int,
    seed: int,
) -> float:
    """Return the mean error of networks drawn around ``model``, one for each ``batch_size`` examples: an estimate."""
    risk = EmpiricalRisk(model, batch_mean(zero_one), data.batches(batch_size))
    widths = per_parameter("sigma", sigma, risk.parameters)
    return posterior_risk(risk, widths, num_passes=num_passes, delta=0.5, seed=seed).value


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def sigma_of(recipe: CertificateRecipe, model: nn.Module) -> dict[str, float] | float:
    """Return σ, by layer in units of the weights that stand in ``model`` now."""
    if not recipe.per_layer:
        return recipe.sigma
    sizes: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]  # a bias, which may be zero, has the σ of the weights beside it
        sizes.setdefault(module, recipe.sigma * float(parameter.detach().square().mean().sqrt()))
    return {name: sizes[name.rpartition(".")[0]] for name, _ in model.named_parameters()}

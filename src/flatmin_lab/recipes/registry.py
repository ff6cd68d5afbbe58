"""The recipes by name. Importing this file loads neither torch nor data, so that the command line can name them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatmin_lab.recipes.certificates import CertificateRecipe
    from flatmin_lab.recipes.gap import GapRecipe

CERTIFICATES: dict[str, str] = {
    "mnist-cnn": "MNIST, small convolutional network, one sigma",
    "mnist-cnn-per-layer": "the same, a sigma for each layer",
    "mnist-fcn": "MNIST, fully connected network, one sigma",
    "fashion-cnn": "Fashion-MNIST, small convolutional network, one sigma",
    "fashion-fcn": "Fashion-MNIST, fully connected network, one sigma",
    "digits-fcn": "scikit-learn's digits, fully connected network, one sigma; needs no data root",
}


def certificate_recipe(name: str) -> CertificateRecipe:
    """Return the recipe called ``name``.

    Raises:
        ArgumentError: There is none.
    """
    from flatmin.checks import choice
    from flatmin_lab.models.small import small_cnn, small_fcn
    from flatmin_lab.recipes import data
    from flatmin_lab.recipes.certificates import CertificateRecipe

    choice("recipe", name, CERTIFICATES)
    source, kind = name.split("-")[:2]
    options: dict[str, Any] = {"per_layer": True, "sigma": 0.1} if name.endswith("per-layer") else {}
    if source == "digits":
        options |= {"prior_epochs": 100, "epochs": 30, "batch_size": 25, "num_passes": 100, "learning_rate": 0.02}
        return CertificateRecipe(name, data.digits, lambda: small_fcn(64, width=64), **options)
    network = small_cnn if kind == "cnn" else small_fcn
    return CertificateRecipe(name, getattr(data, source), network, **options)


GAPS: dict[str, str] = {
    "mlp-relu": "MNIST, perceptron with ReLU, as in the paper",
    "mlp-gelu": "the same with GELU",
    "mlp-tanh": "the same with tanh",
    "gcn-relu": "ego networks of three fields, two graph convolutions with ReLU, as in the paper",
    "gcn-gelu": "the same with GELU",
    "bert": "MRPC, a pretrained encoder of BERT's architecture from a folder",
}
"""Comparisons of the perturbation gap with the trace, each with one line for people."""

SIZES = ("toy", "small", "paper")

_LIMIT = (0.0025, 0.005, 0.01)  # below the paper's range, where only kinks tell the gap from the trace


def gap_recipe(name: str, size: str) -> GapRecipe:
    """Return the comparison called ``name``.

    Raises:
        ArgumentError: There is none, or no such size.
    """
    from flatmin.checks import choice

    choice("recipe", name, GAPS)
    choice("size", size, SIZES)
    kind, _, activation = name.partition("-")
    return {"mlp": _mlp_gap, "gcn": _gcn_gap, "bert": _bert_gap}[kind](name, size, activation)


def _mlp_gap(name: str, size: str, activation: str) -> GapRecipe:
    from flatmin_lab.recipes.gap import GapRecipe
    from flatmin_lab.recipes.gap_problems import perceptron

    options: dict[str, Any] = {
        "toy": {"sigmas": (0.005, 0.01, 0.02, 0.04), "num_pairs": 100, "epochs": 15, "learning_rate": 5e-3},
        "small": {"sigmas": (*_LIMIT, 0.02, 0.03, 0.04), "num_pairs": 400, "epochs": 30, "learning_rate": 1e-4},
        "paper": {"sigmas": (*_LIMIT, *_steps(20, 40)), "num_pairs": 100, "epochs": 30, "learning_rate": 1e-4},
    }[size] | {"batch_size": {"toy": 25, "small": 64, "paper": 256}[size]}
    data, count = ("digits", None) if size == "toy" else ("mnist", 10_000 if size == "small" else None)
    return GapRecipe(
        name,
        size,
        lambda root, _, seed: perceptron(root, seed, activation=activation, data=data, count=count),
        **options,
    )


def _gcn_gap(name: str, size: str, activation: str) -> GapRecipe:
    from flatmin_lab.recipes.gap import GapRecipe
    from flatmin_lab.recipes.gap_problems import graph_network

    options: dict[str, Any] = {
        "toy": {"sigmas": (0.01, 0.02), "num_pairs": 20, "epochs": 8},
        "small": {"sigmas": (*_LIMIT, 0.02, 0.04, 0.06), "num_pairs": 100, "epochs": 40},
        "paper": {"sigmas": (*_LIMIT, *_steps(40, 60)), "num_pairs": 20, "epochs": 100},
    }[size]
    options |= {"learning_rate": 0.01, "batch_size": 32, "decay": (0.5, options["epochs"] // 4)}
    per_class, width = {"toy": (10, 16), "small": (100, 128), "paper": (438, 128)}[size]
    return GapRecipe(
        name,
        size,
        lambda root, _, seed: graph_network(root, seed, activation=activation, per_class=per_class, width=width),
        **options,
    )


def _bert_gap(name: str, size: str, _: str) -> GapRecipe:
    from flatmin_lab.recipes.gap import GapRecipe
    from flatmin_lab.recipes.gap_problems import encoder

    options: dict[str, Any] = {
        "toy": {"sigmas": (0.002, 0.004), "num_pairs": 4, "epochs": 1, "learning_rate": 1e-5, "max_matvecs": 20},
        "small": {"sigmas": (0.002, 0.004, 0.008), "num_pairs": 20, "epochs": 5, "learning_rate": 5e-5, "rtol": 0.05},
        "paper": {"sigmas": (0.002, 0.004, *_steps(71, 80, 1e-4)), "num_pairs": 20, "epochs": 10},
    }[size]
    count, length = {"toy": (8, 32), "small": (32, 64), "paper": (None, 128)}[size]
    return GapRecipe(
        name,
        size,
        lambda root, weights, seed: encoder(root, weights, seed, count=count, length=length),
        **{"learning_rate": 1e-5, "batch_size": 8, "decay": (1.0, 1)} | options,
    )


def _steps(first: int, last: int, unit: float = 1e-3) -> tuple[float, ...]:
    return tuple(round(unit * i, 6) for i in range(first, last + 1))

"""The recipes by name. Importing this file loads neither torch nor data, so that the command line can name them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatmin_lab.recipes.certificates import CertificateRecipe

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

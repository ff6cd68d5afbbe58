"""Image networks of transformers that return logits: from a folder under the data root, or fresh.

Nothing is downloaded: a folder is what ``save_pretrained`` writes, or ``hf download NAME --local-dir FOLDER``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flatmin.checks import whole
from flatmin.errors import ArgumentError, DataError
from flatmin_lab.data.root import required
from flatmin_lab.errors import WeightsError
from flatmin_lab.models.pixels import IMAGENET, Pixels
from flatmin_lab.models.text_folders import INSTALL, read_folder

if TYPE_CHECKING:
    from pathlib import Path

RESNET34 = "resnet-34"
FILES = {
    f"{RESNET34}/config.json": f"a folder {RESNET34} with config.json and model.safetensors: hf download "
    f"microsoft/resnet-34 --local-dir ROOT/{RESNET34}"
}
"""What `resnet34` needs under the data root."""


class Logits(nn.Module):
    """A network of transformers, of which only the logits are wanted."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, classes) of images (n, c, h, w)."""
        return self.network(images).logits


def resnet34(root: Path, num_classes: int) -> Pixels:
    """ResNet-34, trained on ImageNet, with a fresh last layer; it scales what it is given to 224 pixels.

    Args:
        root: The data root, which holds the folder `RESNET34`.
        num_classes: Outputs. The last layer is drawn from torch's global generator.

    Returns:
        The network in training mode, for images of bytes.

    Raises:
        DataError: The folder is missing.
        WeightsError: It holds something else.
        MissingPackageError: transformers is not installed.
    """
    whole("num_classes", num_classes, minimum=1, hint="It is the number of outputs.")
    folder = root / RESNET34
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder / 'config.json'} is missing. Needed is {next(iter(FILES.values()))}")
    network, info = read_folder(
        "ResNetForImageClassification",
        folder,
        output_loading_info=True,
        num_labels=num_classes,
        ignore_mismatched_sizes=True,
        use_safetensors=True,
        dtype=torch.float32,
    )
    absent = sorted(name for name in info["missing_keys"] if not name.startswith("classifier."))
    if absent:
        raise WeightsError(f"{folder} lacks {absent[0]}: it holds another network. Download microsoft/resnet-34 there.")
    return Pixels(Logits(network.train()), *IMAGENET, pixels=224)


def vit(num_classes: int = 10, *, pixels: int = 32, patch: int = 4, width: int = 192, layers: int = 6) -> Logits:
    """A small vision transformer, fresh from torch's global generator, with heads of 64 numbers and no dropout.

    - Dosovitskiy et al. An image is worth 16 x 16 words. arXiv:2010.11929.

    Args:
        num_classes: Outputs.
        pixels: Height and width of the images.
        patch: Height and width of a patch.
        width: Of the tokens, a multiple of 64.
        layers: How many. ViT-S/16 is ``vit(1000, pixels=224, patch=16, width=384, layers=12)``.

    Raises:
        ArgumentError: A number is below 1, or the width is no multiple of 64.
        MissingPackageError: transformers is not installed.

    Example:
        >>> sum(p.numel() for p in vit().parameters())
        2693578
    """
    for name, number in {"num_classes": num_classes, "pixels": pixels, "patch": patch, "layers": layers}.items():
        whole(name, number, minimum=1, hint="It is a size of the network.")
    if whole("width", width, minimum=64, hint="It is a multiple of 64, the width of a head.") % 64:
        raise ArgumentError(f"width is {width}, and heads are 64 wide. Take a multiple of 64.")
    transformers = required("transformers", "transformers", "builds this network", install=INSTALL)
    shape = transformers.ViTConfig(
        image_size=pixels,
        patch_size=patch,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=num_classes,
        attn_implementation="eager",  # the others have no second derivative on a CPU
    )
    return Logits(transformers.ViTForImageClassification(shape).train())

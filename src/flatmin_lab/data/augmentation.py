"""Random changes of a batch of images that leave their classes as they are.

- Krizhevsky, Sutskever, Hinton (2012). ImageNet classification with deep convolutional neural networks, section 4.1.
- He, Zhang, Ren, Sun. arXiv:1512.03385, section 4.2 (a padding of four pixels for images of 32).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flatmin.checks import whole
from flatmin.errors import ArgumentError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def flip_and_crop(inputs: Any, generator: torch.Generator, *, padding: int = 4, flip: bool = True) -> Tensor:
    r"""Cut each image at random out of itself with a margin of zeros, and mirror it with probability 1/2.

    .. math:: y_{n,c,i,j} = \bar x_{n,c,\,i + a_n,\,j_n(j) + b_n}, \quad
        a_n, b_n \sim U\{0, \dots, 2p\}, \quad j_n(j) \in \{j, w - 1 - j\}

    with :math:`\bar x` the image within a margin of p zeros: black where pixels are bytes, the mean colour where they
    are standardised.

    Args:
        inputs: Images (n, c, h, w), of any type.
        generator: Draws one offset in each direction and one coin for each image; on the CPU, whatever the device.
        padding: p, the width of the margin; 0 for no cropping.
        flip: Whether they are mirrored.

    Returns:
        Images of the same shape, type and device.

    Raises:
        ArgumentError: ``inputs`` are no images, or ``padding`` is negative.

    Example:
        >>> import torch
        >>> image = torch.arange(1, 10).view(1, 1, 3, 3)
        >>> flip_and_crop(image, torch.Generator().manual_seed(2), padding=1)
        tensor([[[[0, 0, 0],
                  [2, 1, 0],
                  [5, 4, 0]]]])
    """
    import torch
    from torch.nn import functional

    whole("padding", padding, minimum=0, hint="It is the width of a margin in pixels.")
    if not isinstance(inputs, torch.Tensor) or inputs.dim() != 4:
        found = f"a tensor of shape {tuple(inputs.shape)}" if isinstance(inputs, torch.Tensor) else f"{type(inputs)}"
        raise ArgumentError(
            f"inputs is {found}, and images (n, channels, height, width) are needed. Likely cause: the task has no "
            "images, or its images are flattened or paired with text. Train it without augmentation."
        )
    count, _, height, width = inputs.shape
    down, right = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
    mirrored = torch.randint(1 + flip, (count, 1), generator=generator) == 1
    along = torch.arange(width)
    columns = right + torch.where(mirrored, along.flip(0), along)
    rows = down + torch.arange(height)
    padded = functional.pad(inputs, (padding,) * 4)
    wanted = (torch.arange(count).view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1))
    taken = padded.transpose(0, 1)[:, *(numbers.to(inputs.device) for numbers in wanted)]
    return taken.transpose(0, 1).contiguous()


AUGMENTATIONS: dict[str, Callable[[Any, torch.Generator], Tensor]] = {
    "flip": functools.partial(flip_and_crop, padding=0),
    "crop": functools.partial(flip_and_crop, flip=False),
    "flip-crop": flip_and_crop,
}
"""Augmentations by name: functions of inputs and a generator."""

"""Language models of transformers, and their tokenizers, from folders on a disk: nothing is fetched or printed."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from flatmin_lab.data.root import required
from flatmin_lab.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INSTALL = "flatmin[hf]"


def read_folder(kind: str, folder: Path, **options: Any) -> Any:
    """Read a model or a tokenizer.

    Weights that the folder lacks, such as a head, are drawn from torch's global generator.

    Args:
        kind: Its class in transformers, such as ``"AutoTokenizer"``.
        folder: What ``save_pretrained`` wrote.
        options: For ``from_pretrained``.

    Returns:
        What ``from_pretrained`` makes of it.

    Raises:
        WeightsError: The folder is no such folder.
        MissingPackageError: transformers is not installed.
    """
    transformers = required("transformers", "transformers", "builds this model", install=INSTALL)
    from safetensors import SafetensorError

    with _quiet(transformers):
        try:
            return getattr(transformers, kind).from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,  # or else transformers asks at the terminal
                **options,
            )
        except (OSError, ValueError, SafetensorError) as error:
            first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise WeightsError(
                f"{folder} cannot be loaded by {kind} ({first_line}). It must hold config.json, model.safetensors and, "
                "for texts, tokenizer.json, as save_pretrained of a model and of its tokenizer writes them."
            ) from error


def read_model(kind: str, folder: Path, *, head: str | None = None, **options: Any) -> Any:
    """Read a model, in single precision and with attention written out, so that it can be differentiated twice.

    Args:
        kind: Its class in transformers.
        folder: What ``save_pretrained`` wrote.
        head: The beginning of the names of weights that may be missing, and are fresh then.
        options: Changes of its configuration.

    Returns:
        The model in training mode.

    Raises:
        WeightsError: The folder is no such folder, or lacks weights that are not of the head.
        MissingPackageError: transformers is not installed.
    """
    import torch

    eager = {"attn_implementation": "eager", "dtype": torch.float32, "use_safetensors": True}
    model, info = read_folder(kind, folder, output_loading_info=True, **eager, **options)
    absent = sorted(name for name in info["missing_keys"] if head is None or not name.startswith(head))
    if absent:
        raise WeightsError(
            f"{folder} lacks {', '.join(absent[:3])}{' and others' if absent[3:] else ''}, which {kind} would draw at "
            "random. Likely cause: the folder holds another model. Put the pretrained one there."
        )
    return model.train()


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads warn when a process is forked later
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(level)
        transformers.utils.logging.enable_progress_bar()

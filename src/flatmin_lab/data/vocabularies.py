"""Tokenizers: those of pretrained models, and those made from the texts themselves."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatmin.errors import DataError
from flatmin_lab.data.root import required
from flatmin_lab.data.text_files import FOLDERS, MODEL_FILES
from flatmin_lab.models.text_folders import INSTALL, read_folder

if TYPE_CHECKING:
    from pathlib import Path

    from flatmin_lab.data.text import Sentences

END = "<|endoftext|>"
"""The token that ends a text, in GPT-2's vocabulary and in those made here; texts are filled up with it too."""


def model_folder(root: Path, name: str) -> Path:
    """Return the folder of a pretrained model.

    Args:
        root: The data root.
        name: Of the folder in it.

    Raises:
        DataError: It lacks a file; the message says where the model is to be had.
    """
    folder = root / name
    missing = [file for file in MODEL_FILES if not (folder / file).is_file()]
    if missing:
        source = FOLDERS.get(name, "as save_pretrained of a model and of its tokenizer writes them")
        raise DataError(
            f"{folder} lacks {', '.join(missing)}. Likely cause: the model was never put there. Put these files into "
            f"it: {source}."
        )
    return folder


@functools.cache
def tokenizer_in(folder: Path) -> Any:
    """The tokenizer of a pretrained model."""
    return read_folder("AutoTokenizer", folder)


@functools.lru_cache(maxsize=4)
def own_tokenizer(texts: tuple[str, ...], vocabulary: int) -> Any:
    """Make a tokenizer from texts, the same whenever the texts are.

    It is byte-level byte-pair encoding (Radford et al. 2019, Language models are unsupervised multitask learners,
    section 2.2), so there is no text that it cannot write.

    Args:
        texts: What it is made from.
        vocabulary: Its tokens, at most: `END`, the 256 bytes, and the most frequent pairs.

    Returns:
        A tokenizer as those of transformers are, whose token 0 is `END`.

    Raises:
        MissingPackageError: transformers is not installed.

    Example:
        >>> tokenizer = own_tokenizer(("one and one", "one and two"), vocabulary=260)
        >>> tokenizer.decode(tokenizer("two: ½")["input_ids"]), len(tokenizer)
        ('two: ½', 260)
    """
    transformers = required("transformers", "transformers", "makes a vocabulary", install=INSTALL)
    parts = required("tokenizers", "tokenizers", "makes a vocabulary", install=INSTALL)
    made = parts.Tokenizer(parts.models.BPE())
    made.pre_tokenizer = parts.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = parts.decoders.ByteLevel()
    trainer = parts.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=parts.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def encoded(tokenizer: Any, sentences: Sentences, length: int) -> tuple[Tensor, ...]:
    """Return sentences, or pairs of them, as the inputs of an encoder.

    Args:
        tokenizer: Of the encoder.
        sentences: n of them; longer ones are cut.
        length: Tokens of each, padding included.

    Returns:
        Numbers of the tokens, which of them are no padding, and, for tokenizers that tell the sentences of a pair
        apart, which sentence each belongs to: shape (n, length) each.
    """
    second = () if sentences.second is None else (list(sentences.second),)
    made = tokenizer(
        list(sentences.first), *second, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    names = ("input_ids", "attention_mask", "token_type_ids")
    return tuple(made[name].to(torch.int64) for name in names if name in made)

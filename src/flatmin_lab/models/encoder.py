"""Encoders that classify sentences and pairs of them.

- Devlin et al. BERT. arXiv:1810.04805.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from flatmin_lab.data.root import required
from flatmin_lab.models.text_folders import INSTALL, read_model

if TYPE_CHECKING:
    from pathlib import Path


class SentenceClassifier(nn.Module):
    """An encoder of transformers with a head, as a function of tensors alone.

    Args:
        encoder: A model for the classification of sequences.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor, mask: Tensor, kinds: Tensor | None = None) -> Tensor:
        """Return logits (n, classes).

        Args:
            tokens: Their numbers, (n, length).
            mask: 1 where they are no padding.
            kinds: Which sentence of a pair they belong to, where the encoder tells them apart.
        """
        which = {} if kinds is None else {"token_type_ids": kinds}
        return self.encoder(input_ids=tokens, attention_mask=mask, **which).logits


def sentence_classifier(folder: Path, classes: int = 2) -> SentenceClassifier:
    """A pretrained encoder with a fresh head, drawn from torch's global generator.

    Args:
        folder: What ``save_pretrained`` wrote.
        classes: Outputs.

    Raises:
        WeightsError: The folder is no such folder, or lacks weights that are not of the head.
        MissingPackageError: transformers is not installed.
    """
    return SentenceClassifier(
        read_model("AutoModelForSequenceClassification", folder, head="classifier.", num_labels=classes)
    )


def small_bert(
    vocabulary: int, length: int, *, width: int = 32, layers: int = 2, classes: int = 2
) -> SentenceClassifier:
    """A small BERT with fresh weights, drawn from torch's global generator.

    Args:
        vocabulary: Tokens that it knows.
        length: Tokens in a sequence, at most.
        width: Of the hidden states; the hidden layers between are four times as wide.
        layers: How many.
        classes: Outputs.

    Raises:
        MissingPackageError: transformers is not installed.
    """
    transformers = required("transformers", "transformers", "builds this model", install=INSTALL)
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        max_position_embeddings=length,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 16),
        num_labels=classes,
        attn_implementation="eager",
    )
    return SentenceClassifier(transformers.BertForSequenceClassification(config).train())

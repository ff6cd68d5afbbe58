"""Language models that read from left to right, their loss, and the answers that they write.

- Radford et al. Language models are unsupervised multitask learners (GPT-2). 2019.
- Ho, Schmid, Yun. Large language models are reasoning teachers. arXiv:2212.10071, section 4: answers are read off
  completions that are written greedily.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flatmin_lab.data.root import required
from flatmin_lab.models.text_folders import INSTALL, read_model

if TYPE_CHECKING:
    from pathlib import Path

IGNORED = -100
"""The target of a token that nothing is learnt from."""


class LanguageModel(nn.Module):
    """A causal language model of transformers, as a function of tokens alone.

    Sequences are filled up at their end, where no earlier token sees it, so that no mask is needed.

    Args:
        gpt: The model.
    """

    def __init__(self, gpt: Any) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (n, length, vocabulary) of the token after each of ``tokens`` (n, length)."""
        return self.gpt(input_ids=tokens, use_cache=False).logits

    def written(self, prompts: list[Tensor], *, most: int, end: int) -> Tensor:
        """Continue prompts with the likeliest token, one after the other; nothing is drawn.

        Args:
            prompts: The tokens of each.
            most: Tokens written after each, at most.
            end: The token that ends a text.

        Returns:
            What was written, (n, at most ``most``), filled up with ``end``.
        """
        longest = max(map(len, prompts))
        tokens = torch.stack([functional.pad(p, (longest - len(p), 0), value=end) for p in prompts])
        mask = torch.stack([functional.pad(torch.ones_like(p), (longest - len(p), 0)) for p in prompts])
        made = self.gpt.generate(
            input_ids=tokens,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=most,
            eos_token_id=end,
            pad_token_id=end,
        )
        return made[:, longest:]


def small_gpt(vocabulary: int, length: int, *, width: int = 128, layers: int = 4) -> LanguageModel:
    """A small GPT-2 with fresh weights, drawn from torch's global generator.

    Args:
        vocabulary: Tokens that it knows, of which number 0 begins and ends texts.
        length: Tokens in a sequence, at most.
        width: Of the hidden states, in heads of 32.
        layers: How many.

    Raises:
        MissingPackageError: transformers is not installed.

    Example:
        >>> model = small_gpt(300, 24, width=32, layers=2)
        >>> model(torch.zeros(2, 24, dtype=torch.int64)).shape, sum(p.numel() for p in model.parameters())
        (torch.Size([2, 24, 300]), 35840)
    """
    transformers = required("transformers", "transformers", "builds this model", install=INSTALL)
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=max(1, width // 32),
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    return LanguageModel(transformers.GPT2LMHeadModel(config).train())


def pretrained_gpt(folder: Path) -> LanguageModel:
    """A pretrained causal language model.

    Args:
        folder: What ``save_pretrained`` wrote.

    Raises:
        WeightsError: The folder is no such folder, or lacks weights.
        MissingPackageError: transformers is not installed.
    """
    return LanguageModel(read_model("AutoModelForCausalLM", folder))


def token_cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy over all tokens that something is learnt from.

    Tokens of one batch weigh the same; those of a batch with fewer weigh more in a mean over batches.

    Args:
        logits: Of the token at each place, (n, length, vocabulary).
        targets: That token, (n, length); `IGNORED` where nothing is learnt from it.
        label_smoothing: Share of the target's probability that is spread over all tokens.

    Example:
        >>> logits = torch.zeros(1, 3, 5)
        >>> float(token_cross_entropy(logits, torch.tensor([[IGNORED, 4, 2]]))) == float(torch.tensor(5.0).log())
        True
    """
    return functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing
    )

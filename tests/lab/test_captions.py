"""Captions made of images, captions in shards, and captions as numbers."""

import math
import operator

import pytest
import torch

import image_folders as twins
from flatmin.errors import ArgumentError, DataError
from flatmin_lab.data import captions, shards
from flatmin_lab.data.splits import Split, Splits
from flatmin_lab.data.tokens import Subwords, Vocabulary
from flatmin_lab.errors import WeightsError
from lab_data import images

BOTH = pytest.mark.parametrize("kind", [captions.DIGITS, captions.CIFAR])


def rows(split):
    return set(map(tuple, split.inputs[0].flatten(1).tolist()))


@BOTH
def test_equal_numbers_are_equal_captions_and_none_is_cut(kind):
    texts = [kind.text(number) for number in range(len(kind))]
    assert len(set(texts)) == len(kind) == math.prod([len(kind.templates), 10, *[3] * len(kind.attributes)])
    tokens = kind.vocabulary.encode(texts, kind.length)
    assert tokens.shape == (len(kind), kind.length)
    assert (tokens != kind.vocabulary.end).sum(dim=1).tolist() == [1 + len(text.split()) for text in texts]
    assert len(torch.unique(tokens, dim=0)) == len(kind)
    assert len(torch.unique(tokens)) == kind.vocabulary.size == int(tokens.max()) + 1


def test_captions_say_what_is_measured():
    n, g = 500, torch.Generator().manual_seed(0)
    photographs = torch.randn(n, 3, 32, 32, generator=g) + torch.randn(n, 3, 1, 1, generator=g)
    photographs[:, :, :, :16] += torch.randn(n, 1, 1, 1, generator=g)
    labels = torch.randint(10, (n,), generator=g)
    pairs = captions.CIFAR.pairs(Split(photographs, labels), g)
    assert pairs.inputs[0] is photographs
    left, right = photographs[..., :16].mean((1, 2, 3)), photographs[..., 16:].mean((1, 2, 3))
    for i in range(n):
        text = captions.CIFAR.text(int(pairs.targets[i]))
        assert captions.CIFAR.things[labels[i]] in text.split()
        assert ("dark" in text) == (photographs[i].mean() <= 0.22)
        assert ("cold" in text) == (photographs[i, 0].mean() - photographs[i, 2].mean() <= -0.81)
        assert ("warm" in text) == (photographs[i, 0].mean() - photographs[i, 2].mean() > -0.36)
        assert ("sharp" in text) == (photographs[i].mean(0).std() > 0.92)
        assert ("brighter on the left" in text) == (left[i] - right[i] > 0.09)
        assert ("brighter on the right" in text) == (left[i] - right[i] <= -0.09)
    drawn = torch.bincount(pairs.targets // (len(captions.CIFAR) // 4), minlength=4) / n  # the template comes first
    assert bool(((drawn - 0.25).abs() < 4 * math.sqrt(0.25 * 0.75 / n)).all())


def test_digits_lean_and_widen_as_they_are_said_to():
    slash, bar = torch.eye(8).flip(1), torch.zeros(8, 8)
    bar[:, 3:5] = 1
    drawn = torch.stack([slash, bar, slash.flip(1)]).unsqueeze(1) * 2 - 1
    _, width, lean = captions.DIGITS.attributes
    assert [lean.words[i] for i in lean(drawn)] == ["right-leaning", "upright", "left-leaning"]
    assert [width.words[i] for i in width(drawn)] == ["wide", "narrow", "wide"]
    # Of one stroke of ink, the moments are those of its pixels.
    torch.testing.assert_close(captions._moments(drawn)[0], torch.tensor([2.29129, 0.5, 2.29129]), rtol=1e-5, atol=0)


def test_thresholds_are_near_the_terciles_of_digits():
    pairs = captions.captioned_digits(0).train
    numbers = torch.unravel_index(pairs.targets, captions.DIGITS._sizes)
    for attribute in numbers[2:]:
        assert bool((torch.bincount(attribute, minlength=3) > 0.2 * len(pairs)).all())


def test_captioned_digits_depend_on_the_seed_but_for_the_test_pairs():
    first, again, other = (captions.captioned_digits(seed) for seed in (0, 0, 1))
    assert first.digest == again.digest
    assert first.test.digest == other.test.digest
    assert first.train.digest != other.train.digest
    assert not (rows(first.train) | rows(first.validation)) & rows(first.test)
    assert not rows(first.train) & rows(first.validation)
    for split in (first.train, first.validation, first.test):
        texts = [captions.DIGITS.text(number) for number in split.targets.tolist()]
        assert torch.equal(split.inputs[1], captions.DIGITS.vocabulary.encode(texts, captions.DIGITS.length))


def test_captioned_cifar_depends_on_the_seed_but_for_the_test_pairs(tmp_path, monkeypatch):
    monkeypatch.setenv("FLATMIN_DATA", str(images(tmp_path, count=24, tests=4)))
    captions.captioned_cifar.cache_clear()
    first = captions.captioned_cifar(0)
    other = captions.captioned_cifar(1)
    captions.captioned_cifar.cache_clear()
    assert [len(split) for split in (first.train, first.validation, first.test)] == [16, 4, 4]
    assert captions.captioned_cifar(0).digest == first.digest
    assert first.test.digest == other.test.digest
    assert first.train.digest != other.train.digest
    assert len(rows(first.train) | rows(first.validation) | rows(first.test)) == 24
    for split in (first.train, first.validation, first.test):
        greys = (split.inputs[0][:, 0, 0, 0] * 0.229 + 0.485) * 255  # of image i, 10 i; and its class is i mod 10
        for grey, number in zip(greys.tolist(), split.targets.tolist(), strict=True):
            words = captions.CIFAR.text(number).split()
            assert captions.CIFAR.things[round(grey / 10) % 10] in words
            assert {"flat", "even", "bright" if grey > 180 else "dark" if grey < 120 else "flat"} <= set(words)
    captions.captioned_cifar.cache_clear()


def test_unknown_words_are_named():
    with pytest.raises(ArgumentError, match="'cow', which is not among the 2 words"):
        Vocabulary(["a", "dog"]).encode(["a cow"], 5)


def test_long_texts_are_cut_and_still_end():
    words = Vocabulary(["a", "b"])
    assert words.encode(["a b a b a b"], 4).tolist() == [[0, 1, 2, words.end]]
    assert words.encode([], 4).shape == (0, 4)


def tokenizer(folder, begin):
    """A tokenizer of four words, with the begin of CLIP (a token of its own) or of GPT-2 (its end)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<begin>", "<end>", "a", "dog", "red", "cat"]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token=begin, eos_token="<end>").save_pretrained(folder)
    return folder


def test_a_tokenizer_under_the_data_root(tmp_path):
    tokenizer(tmp_path / "gpt2", begin="<end>")
    gpt2 = Subwords(tmp_path)
    assert (gpt2.size, gpt2.end) == (6, 1)
    assert gpt2.encode(["a dog", "a red cat a"], 4).tolist() == [[2, 3, 1, 1], [2, 4, 5, 1]]
    tokenizer(tmp_path / "clip-tokenizer", begin="<begin>")  # the first one there is taken
    assert Subwords(tmp_path).encode(["a dog", "a red cat a"], 4).tolist() == [[0, 2, 3, 1], [0, 2, 4, 1]]


def shard(root, part, number, pairs, kind="png"):
    """A shard of greys and captions, among other files."""
    members = {}
    for i, (grey, caption) in enumerate(pairs):
        members[f"{i:09d}.jpg"] = twins.encoded(grey, kind)
        members[f"{i:09d}.json"] = b"{}"
        members[f"{i:09d}.txt"] = f" {caption}\n".encode()
    members["alone.jpg"] = twins.encoded(0)
    return twins.tar(root / f"cc3m/cc3m-{part}-{number:04d}.tar", members)


@pytest.fixture
def root(tmp_path):
    tokenizer(tmp_path / "gpt2", begin="<end>")
    shard(tmp_path, "train", 0, [(k, "a dog") for k in range(6)])
    shard(tmp_path, "train", 1, [(k, "a red cat" if k % 2 else "a dog") for k in range(6, 10)])
    shard(tmp_path, "validation", 0, [(200, "dog"), (201, "cat"), (202, "cat")], kind="jpeg")
    shards.conceptual_captions.cache_clear()
    yield tmp_path
    shards.conceptual_captions.cache_clear()


def test_shards_are_decoded_when_asked(root):
    splits = shards.conceptual_captions(root, 0)
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [8, 2, 3]
    greys = []
    for split in (splits.train, splits.validation):
        for piece in split.pieces(3):
            pixels, tokens = piece.inputs
            assert type(piece) is Split
            assert pixels.shape[1:] == (3, 224, 224)
            assert pixels.dtype == torch.uint8
            for grey, row in zip(pixels[:, 0, 100, 100].tolist(), tokens, strict=True):
                assert bool((row[:3] == torch.tensor([2, 4, 5] if grey > 5 and grey % 2 else [2, 3, 1])).all())
                greys.append(grey)
    assert sorted(greys) == list(range(10))
    assert splits.test[:].inputs[0][:, 2, 0, 0].tolist() == [200, 201, 202]
    assert splits.test.targets.tolist() == [0, 1, 1]  # equal captions have one number
    some = splits.test[torch.tensor([2, 0])]
    assert some.inputs[0][:, 0, 0, 0].tolist() == [202, 200]
    assert len(splits.test[:0].inputs[0]) == 0


def test_shards_depend_on_the_seed_but_for_the_test_pairs(root):
    digests = []
    for seed in (0, 0, 1):
        shards.conceptual_captions.cache_clear()
        digests.append(shards.conceptual_captions(root, seed).digest.split())
    assert digests[0] == digests[1]
    assert digests[0][2] == digests[2][2]
    assert digests[0][0] != digests[2][0]


def test_stored_pairs_go_to_a_device_once_decoded(root):
    meta = shards.conceptual_captions(root, 0).to(torch.device("meta"))
    assert isinstance(meta, Splits)
    places, tokens = meta.train.inputs
    assert (places.device.type, tokens.device.type, meta.train.targets.device.type) == ("cpu", "meta", "meta")
    assert all(tensor.device.type == "meta" for tensor in meta.train[:2].inputs)


def test_no_more_shards_are_opened_than_are_needed(root):
    paths = sorted((root / "cc3m").glob("cc3m-train-*.tar"))
    paths[1].write_bytes(b"garbage")
    found = shards.stored(paths, Subwords(root), 5, most=4)
    assert (len(found), found.inputs[1].shape) == (4, (4, 5))
    with pytest.raises(DataError, match=r"cc3m-train-0001\.tar cannot be read.*Copy it again"):
        shards.stored(paths, Subwords(root), 5)


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(DataError, match=r"clip-tokenizer is missing.*hf download"):
        shards.conceptual_captions(tmp_path, 0)
    (tmp_path / "gpt2").mkdir()
    with pytest.raises(WeightsError, match=r"gpt2 cannot be loaded by AutoTokenizer"):
        Subwords(tmp_path)
    tokenizer(tmp_path / "gpt2", begin="<end>")
    with pytest.raises(DataError, match=r"cc3m-train-0000\.tar is missing.*pixparse/cc3m-wds"):
        shards.conceptual_captions(tmp_path, 0)
    path = twins.tar(tmp_path / "cc3m/cc3m-train-0000.tar", {"a.json": b"{}"})
    with pytest.raises(DataError, match=r"cc3m-train-0000\.tar\) hold no pair of KEY\.jpg and KEY\.txt"):
        shards.stored([path], Subwords(tmp_path), 5)
    twins.tar(path, {"a.jpg": b"garbage", "a.txt": b"dog"})
    with pytest.raises(DataError, match=r"the image at byte 512 of .*cc3m-train-0000\.tar is no image"):
        operator.getitem(shards.stored([path], Subwords(tmp_path), 5), slice(None))

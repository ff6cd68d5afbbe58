"""The image data sets of the NSO paper, read from small twins of the same layout."""

import pytest
import torch

import image_folders as twins
from flatmin.errors import ArgumentError, DataError
from flatmin_lab.data import folders
from flatmin_lab.data.cifar_binary import CIFAR10, CIFAR100, cifar
from flatmin_lab.data.sources import SOURCES, _load, source
from flatmin_lab.data.splits import Splits

BINARY = {"cifar10": CIFAR10, "cifar100": CIFAR100}
MAKERS = {
    "cifar10": lambda root: twins.cifar_archive(root, CIFAR10),
    "cifar100": lambda root: twins.cifar_archive(root, CIFAR100),
    "aircraft": twins.aircraft,
    "caltech256": twins.caltech,
    "indoor67": twins.indoor,
    "retina": twins.messidor,
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Photographs of 8 pixels, and nothing kept from one test to the next."""
    monkeypatch.setattr(folders.Listed.decoded, "__defaults__", (8,))
    _load.cache_clear()
    yield
    _load.cache_clear()


def greys(split):
    """The grey value of each photograph, whose pixels are all alike."""
    flat = split.inputs.flatten(1)
    assert bool((flat == flat[:, :1]).all())
    return flat[:, 0].tolist()


def images_of(splits: Splits):
    return [
        set(map(tuple, split.inputs.flatten(1).tolist())) for split in (splits.train, splits.validation, splits.test)
    ]


def test_registry_is_keyed_by_name_and_has_the_printed_sizes():
    assert set(SOURCES) == set(MAKERS)
    assert all(name == s.name for name, s in SOURCES.items())
    assert [sum(SOURCES[name].printed) for name in ("cifar10", "aircraft", "indoor67")] == [60000, 10000, 6700]
    assert [n * 256 for n in (30, 20, 20)] == list(SOURCES["caltech256"].printed)
    assert "1,246" in SOURCES["retina"].note


@pytest.mark.parametrize("name", MAKERS)
def test_every_source_loads_bytes_by_seed(tmp_path, name):
    MAKERS[name](tmp_path)
    first = source(name).load(tmp_path, 0)
    _load.cache_clear()
    again, other = source(name).load(tmp_path, 0), source(name).load(tmp_path, 1)
    assert first.digest == again.digest
    assert first.test.digest == other.test.digest
    for split in (first.train, first.validation, first.test):
        assert split.inputs.dtype == torch.uint8
        assert split.inputs.shape[1:] == ((3, 32, 32) if name in BINARY else (3, 8, 8))
        assert split.targets.dtype == torch.int64
        assert int(split.targets.max()) < source(name).num_classes
        assert len(split) > 0
    if name != "caltech256":  # grey values of its two classes meet
        train, validation, test = images_of(first)
        assert not train & validation
        assert not (train | validation) & test
    assert (first.train.digest == other.train.digest) == (name == "aircraft")  # whose splits are its authors'
    assert all((tmp_path / file).is_file() for file in source(name).files)


@pytest.mark.parametrize("layout", [CIFAR10, CIFAR100])
def test_binary_records_are_read_byte_by_byte(tmp_path, layout):
    train, test = twins.cifar_archive(tmp_path, layout)
    splits = cifar(layout, tmp_path, seed=0)
    expected = torch.from_numpy(test[:, layout.labels :]).view(10, 3, 32, 32)  # red, green and blue planes, row by row
    assert torch.equal(splits.test.inputs, expected)
    assert splits.test.targets.tolist() == test[:, layout.labels - 1].tolist()
    assert len(splits.validation) == len(train) // 10
    rows = {bytes(row[layout.labels :]): int(row[layout.labels - 1]) for row in train}
    both = [(i, t) for split in (splits.train, splits.validation) for i, t in zip(split.inputs, split.targets.tolist())]
    assert {i.numpy().tobytes(): t for i, t in both} == rows


def test_aircraft_keeps_its_authors_splits(tmp_path):
    train, validation, test = (part.decoded() for part in folders.aircraft(twins.aircraft(tmp_path), 0))
    assert (greys(train), greys(validation), greys(test)) == ([0, 1, 2, 3], [100, 101, 102], [200, 201])
    assert train.targets.tolist() == [1, 0, 1, 0]  # 707-320 before A340-300


def test_caltech_takes_as_many_of_each_class_and_no_clutter(tmp_path):
    parts = folders.caltech256(twins.caltech(tmp_path, per_class=80), seed=3)
    for part, each in zip(parts, (30, 20, 20), strict=True):
        assert torch.bincount(torch.tensor(part.targets)).tolist() == [each, each]
        assert all(path.parent.name.startswith(("001", "002")[t]) for path, t in zip(part.paths, part.targets))
    paths = [path for part in parts for path in part.paths]
    assert len(set(paths)) == len(paths) == 140


def test_indoor_holds_out_a_tenth(tmp_path):
    train, validation, test = (part.decoded() for part in folders.indoor67(twins.indoor(tmp_path), 0))
    assert (len(train), len(validation), len(test)) == (18, 2, 4)
    assert sorted(greys(train) + greys(validation)) == list(range(20))
    for split in (train, validation, test):
        assert split.targets.tolist() == [1 - grey % 2 for grey in greys(split)]  # airport_inside, kitchen
    assert round(0.1 * 5360) == 536


def test_retina_takes_what_could_be_graded(tmp_path):
    train, validation, test = (part.decoded() for part in folders.messidor2(twins.messidor(tmp_path), 0))
    found = greys(train) + greys(validation) + greys(test)
    assert sorted(found) == [k for k in range(30) if k % 10 != 9]
    assert (len(validation), len(test)) == (4, 4)
    for split in (train, validation, test):
        assert split.targets.tolist() == [grey % 5 for grey in greys(split)]


def test_photographs_become_squares_as_pillow_scales_them(tmp_path):
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (found,) = folders.Listed((tmp_path / "a.png",), (0,)).decoded().inputs
    expected = np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BILINEAR))
    assert torch.equal(found, torch.from_numpy(expected.copy()).permute(2, 0, 1))


def test_what_is_missing_is_named(tmp_path):
    for name in MAKERS:
        with pytest.raises(DataError, match=rf"({'|'.join(map(str, source(name).files))}|256_ObjectCategories)"):
            source(name).load(tmp_path, 0)
    with pytest.raises(ArgumentError, match=r"data source is 'cifar11'.*Did you mean 'cifar1"):
        source("cifar11")


def test_pickles_are_refused_in_favour_of_the_binary_archive(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match=r"cifar-10-batches-py holds pickles.*cifar-10-binary\.tar\.gz from https"):
        source("cifar10").load(tmp_path, 0)
    twins.cifar_archive(tmp_path, CIFAR10)
    assert len(source("cifar10").load(tmp_path, 0).test) == 10


def test_damaged_files_are_named(tmp_path):
    archive = tmp_path / CIFAR10.archive
    archive.write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz cannot be read.*damaged"):
        cifar(CIFAR10, tmp_path, 0)
    twins.cifar_archive(tmp_path, CIFAR10)
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz cannot be read.*Copy it again"):
        cifar(CIFAR10, tmp_path, 0)
    twins.tar(archive, {"readme.html": b""}, "w:gz")
    with pytest.raises(DataError, match=r"holds no cifar-10-batches-bin/data_batch_1\.bin.*another archive"):
        cifar(CIFAR10, tmp_path, 0)
    twins.tar(archive, dict.fromkeys((*CIFAR10.train, CIFAR10.test), b"12345"), "w:gz")
    with pytest.raises(DataError, match="holds 25 bytes where records of 3073 bytes"):
        cifar(CIFAR10, tmp_path, 0)


def test_damaged_photographs_are_named(tmp_path):
    twins.indoor(tmp_path)
    broken = tmp_path / "indoor67/Images/kitchen/Test0.jpg"
    broken.write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"Test0\.jpg is no image.*damaged"):
        source("indoor67").load(tmp_path, 0)
    broken.unlink()
    with pytest.raises(DataError, match=r"Test0\.jpg is missing.*not unpacked whole"):
        source("indoor67").load(tmp_path, 0)
    twins.caltech(tmp_path, per_class=3)
    with pytest.raises(DataError, match=r"001\.ak47 holds 3 images, and 70 are needed"):
        source("caltech256").load(tmp_path, 0)
    (tmp_path / "messidor2").mkdir()
    (tmp_path / "messidor2/messidor_data.csv").write_text("id_code,diagnosis\na,1\n")
    with pytest.raises(DataError, match=r"messidor_data\.csv has no column image_id.*other grades"):
        source("retina").load(tmp_path, 0)

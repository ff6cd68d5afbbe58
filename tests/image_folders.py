"""Small data roots in the layouts of the image data sets: photographs of one grey value each, and binary archives."""

import io
import tarfile

import numpy as np
from PIL import Image


def photograph(path, grey, size=(5, 3)):
    """An image of one grey value, without loss; wider than high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey,) * 3).save(path, "png")  # whatever its name: images are known by their content
    return path


def encoded(grey, kind="png"):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2), (grey,) * 3).save(buffer, kind)
    return buffer.getvalue()


def tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def records(count, labels, seed):
    """Records of a binary archive: bytes of labels, and 3,072 of an image."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (count, labels + 3072), dtype=np.uint8)
    rows[:, labels - 1] = np.arange(count) % 10
    return rows


def cifar_archive(root, layout):
    """An archive of that layout, ten records a file; returns the records to train on, and those to test with."""
    train = [records(10, layout.labels, i) for i in range(len(layout.train))]
    test = records(10, layout.labels, 99)
    members = {name: rows.tobytes() for name, rows in zip((*layout.train, layout.test), (*train, test), strict=True)}
    tar(root / layout.archive, members, "w:gz")
    return np.concatenate(train), test


def aircraft(root):
    folder = root / "fgvc-aircraft-2013b/data"
    for i, (part, count) in enumerate({"train": 4, "val": 3, "test": 2}.items()):
        names = [f"{i}{k:06d}" for k in range(count)]
        for k, name in enumerate(names):
            photograph(folder / f"images/{name}.jpg", 100 * i + k)
        lines = [f"{name} {('A340-300', '707-320')[k % 2]}" for k, name in enumerate(names)]
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
    return root


def caltech(root, per_class=70):
    for label, name in enumerate(("001.ak47", "002.american-flag", "257.clutter")):
        for k in range(per_class):
            photograph(root / f"256_ObjectCategories/{name}/{name[:3]}_{k + 1:04d}.jpg", 80 * label + k)
    return root


def indoor(root):
    for part, count in {"Train": 20, "Test": 4}.items():
        lines = [f"{('kitchen', 'airport_inside')[k % 2]}/{part}{k}.jpg" for k in range(count)]
        for k, line in enumerate(lines):
            photograph(root / f"indoor67/Images/{line}", (100 if part == "Test" else 0) + k)
        (root / f"indoor67/{part}Images.txt").write_text("\n".join(lines) + "\n")
    return root


def messidor(root, count=30):
    """Grades are image number mod 5; every tenth image could not be graded; names differ in their case."""
    rows = ["image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable"]
    for k in range(count):
        photograph(root / f"messidor2/images/IM{k:04d}.JPG", k)
        rows.append(f"IM{k:04d}.jpg,{'' if k % 10 == 9 else k % 5},,{int(k % 10 != 9)}")
    (root / "messidor2/messidor_data.csv").write_text("\n".join(rows) + "\n")
    return root

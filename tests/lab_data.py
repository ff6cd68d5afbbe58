"""Small files in the layouts that the laboratory reads: images, texts, weights."""

import io
import json
import tarfile

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from flatmin_lab.models.resnet_cifar import ResNetCifar


def images(folder, count=12, tests=4):
    """A file of the layout of the JPEG images: image i has one grey value, 10 i, and label i mod 10."""
    bodies = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), 10 * i, dtype=np.uint8)).save(buffer, "jpeg", quality=75)
        bodies.append(buffer.getvalue())
    header = bodies[0][:20]
    assert all(body[:20] == header for body in bodies)
    rest = [body[20:] for body in bodies]
    np.savez(
        folder / "cifar10_jpeg75.npz",
        header=np.frombuffer(header, np.uint8),
        blob=np.frombuffer(b"".join(rest), np.uint8),
        offsets=np.cumsum([0, *map(len, rest)]),
        labels=np.arange(count, dtype=np.uint8) % 10,
        is_test=np.arange(count) >= count - tests,
    )
    return folder


def texts(folder, pairs=620, questions=7):
    lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    lines += [f'{i % 2}\t{i}\t{i}\t"a "" quote {i}\tsecond {i}' for i in range(pairs)]
    asked = [{"question": f"Is {i} odd?", "answer": bool(i % 2), "facts": []} for i in range(questions)]
    members = {"./msr_paraphrase_train.txt": "\ufeff" + "\n".join(lines), "./strategyqa_train.json": json.dumps(asked)}
    with tarfile.open(folder / "text.tar.xz", "w:xz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content.encode())
            archive.addfile(info, io.BytesIO(content.encode()))
    return folder


def resnet(blocks=1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResNetCifar(blocks)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(0.1)
            module.running_var.fill_(1.5)
    return model.eval()


def save(model, path, change=lambda weights: weights):
    weights = change({k: v.contiguous() for k, v in model.state_dict().items()})
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    return path

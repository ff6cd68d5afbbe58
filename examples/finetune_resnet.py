"""Fine-tune a ResNet with SGD and with two-point noise (NSO): the same seeds, and as many gradients for either.

Needs `pip install 'flatmin[lab,trainer]'`. As it is, less than a minute on a CPU: a small ResNet that has learnt
scikit-learn's digits 0 to 4 is fine-tuned on 50 images of 5 to 9. With a checkpoint of your own (a folder or a name on
the hub of transformers) say `--model`, and change `digits`. Interrupted, it goes on; `--out` elsewhere begins anew.
"""

from copy import deepcopy
from pathlib import Path

import torch
import tyro
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from transformers import ResNetConfig, ResNetForImageClassification

import flatmin as fm
from flatmin_lab.statistics import mean_interval

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def digits(half: int) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 16, 16) and classes (n,) of the digits 0 to 4 or 5 to 9, in an order that is always the same."""
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    images, labels = (torch.from_numpy(array)[order].to(DEVICE) for array in load_digits(return_X_y=True))
    x = images[labels // 5 == half].float().reshape(-1, 1, 8, 8).expand(-1, 3, -1, -1) / 16
    return nn.functional.interpolate(x, size=16), labels[labels // 5 == half] % 5


def train(model: nn.Module, x: Tensor, y: Tensor, gradients: int, sigma: float, seed: int, file: Path) -> None:
    """Train with noise of size sigma, none for SGD; in fp16 on a GPU, with checkpoints."""
    base = torch.optim.SGD(model.to(DEVICE).train().parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    opt = fm.NSO(base, sigma=sigma, seed=seed) if sigma else fm.Plain(base)  # one loop for both
    steps = gradients // (2 if sigma else 1)
    schedule, scaler = CosineAnnealingLR(opt, steps), torch.amp.GradScaler(DEVICE, enabled=DEVICE == "cuda")
    parts = {"model": model, "optimizer": opt, "schedule": schedule, "scaler": scaler}
    saved = torch.load(file, weights_only=True) if file.exists() else {"step": 0}
    for name in parts.keys() & saved.keys():
        parts[name].load_state_dict(saved[name])
    for step in range(saved["step"], steps):
        batch = torch.randint(len(y), (32,), generator=torch.Generator().manual_seed(1_000_000 * seed + step))
        for probe in opt.probes(scaler=scaler):  # two points for NSO, one for SGD
            with probe:  # the weights stand at the point, and come back bit for bit
                with torch.autocast(DEVICE, torch.float16, enabled=DEVICE == "cuda"):
                    loss = model(x[batch], labels=y[batch]).loss
                scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        schedule.step()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            torch.save({"step": step + 1} | {name: part.state_dict() for name, part in parts.items()}, file)


def main(model: str = "", sigma: float = 0.01, gradients: int = 200, seeds: int = 6, out: str = "runs/resnet") -> None:
    """Fine-tune with both over all seeds; sigma is best chosen on held-out data: docs/choosing-sigma.md."""
    (folder := Path(out)).mkdir(parents=True, exist_ok=True)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=5)
    torch.manual_seed(0)
    start = ResNetForImageClassification(config)
    if model:
        start = start.from_pretrained(model, num_labels=5, ignore_mismatched_sizes=True)
    else:
        train(start, *digits(0), gradients, 0.0, 0, folder / "start.pt")
    (x, y), gains = digits(1), []
    for seed in range(seeds):
        right = {}
        for name, noise in {"SGD": 0.0, "NSO": sigma}.items():
            torch.manual_seed(seed)
            (tuned := deepcopy(start)).classifier[-1].reset_parameters()  # a new head, the same for both
            train(tuned, x[:50], y[:50], gradients, noise, seed, folder / f"{name}-{seed}.pt")
            with torch.no_grad():
                right[name] = 100 * (tuned.eval()(x[50:]).logits.argmax(1) == y[50:]).float().mean().item()
        gains.append(right["NSO"] - right["SGD"])
        print(f"seed {seed}: test accuracy {right['SGD']:.1f} % with SGD, {right['NSO']:.1f} % with NSO")  # noqa: T201
    gain = mean_interval(gains)
    print(f"NSO - SGD: {gain.mean:+.1f} points, 95 % interval [{gain.low:+.1f}, {gain.high:+.1f}]")  # noqa: T201


if __name__ == "__main__":
    tyro.cli(main)

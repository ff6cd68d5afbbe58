"""Measure how flat a checkpoint is, and certify the error of noisy copies of it.

Needs `pip install 'flatmin[lab]'`. As it is, seconds on a CPU: checkpoints that are not there are trained first, on
scikit-learn's digits. With yours (state dicts as .safetensors or .pt) change `network` and `examples`:

    python examples/measure_and_certify.py --checkpoint mine.safetensors --prior start.safetensors

The prior are weights in which the examples of the certificate had no part: the start of fine-tuning, a fit on others.
"""

# ruff: noqa: T201 (a script: what it prints is what it is for)
from pathlib import Path

import torch
import tyro
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

import flatmin as fm

SIGMA = 0.03  # of the noise; not to be chosen by the examples, or each one tried is paid for: certify(sigma=[...])
criterion = nn.CrossEntropyLoss()


def network() -> nn.Module:
    """The network that the checkpoints belong to."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def examples() -> tuple[list, list, list]:
    """Batches for the prior, for the certificate and to test with; each example is in one of them."""
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    batches = list(zip((images[order].float() / 16).split(30), labels[order].split(30), strict=True))
    return batches[:25], batches[25:50], batches[50:]


def read(file: Path) -> dict[str, Tensor]:
    """Weights from a file, as tensors alone: nothing in it is executed."""
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


def train(model: nn.Module, batches: list, epochs: int, price: float, file: Path) -> None:
    """Train with the noise of the certificate, at a price for the distance to the start, which its bound is made of."""
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), sigma=SIGMA)
    penalty = fm.DistancePenalty(model, alpha=price / (750 * SIGMA**2))  # 750 examples in the certificate
    for inputs, targets in batches * epochs:
        for probe in opt.probes():
            with probe:
                (criterion(model(inputs), targets) + penalty()).backward()
        opt.step()
        opt.zero_grad()
    save_file(model.state_dict(), file)


def main(checkpoint: Path = Path("checkpoint.safetensors"), prior: Path = Path("prior.safetensors")) -> None:
    """Print the curvature at a checkpoint, its certificate, and its test error."""
    for_prior, batches, test = examples()
    torch.manual_seed(0)
    model = network()
    if not checkpoint.exists() and not prior.exists():
        train(model, for_prior, epochs=20, price=0.0, file=prior)
        train(model, batches, epochs=10, price=9.2, file=checkpoint)
    model.load_state_dict(read(checkpoint))
    H = fm.Hessian(model, criterion, batches)
    print(fm.trace(H))  # exact, as this network is piecewise linear
    print(fm.top_eigenvalues(H, k=3))
    print(fm.perturbation_gap(model, criterion, batches, sigma=SIGMA))
    certificate = fm.certify(model, prior=read(prior), batches=batches, sigma=SIGMA, num_passes=50)
    print(certificate)
    with torch.no_grad():
        wrong = torch.cat([model.eval()(x).argmax(1) != y for x, y in test]).float().mean().item()
    print(f"Certified error {certificate.risk:.1%}, vacuous: {certificate.vacuous}; test error {wrong:.1%}")


if __name__ == "__main__":
    tyro.cli(main)

r"""
A certificate, and what it is made of
=====================================

:func:`flatmin.certify` bounds the error on new data with 95 % confidence, from training data alone. The prior is learnt
on one half of the data and the certificate computed on the other: what costs is the distance between the two
networks, measured in units of the noise that they bear.
"""

import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import flatmin as fm

SIGMAS = [0.02, 0.06, 0.15]
images, labels = load_digits(return_X_y=True)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
x, y = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
batches = list(zip(x.split(75), y.split(75), strict=True))
for_prior, for_bound, test = batches[:10], batches[10:20], batches[20:]
criterion = nn.CrossEntropyLoss()

# %%
# First the prior, then the network itself, on the other half, with a penalty on the way it goes. Both under the noise
# of the certificate, of which NSO minimises the expected loss.


def train(model, batches, *, sigma, epochs, price=0.0):
    """Train at a price for the distance to the start."""
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), sigma=sigma, seed=0)
    penalty = fm.DistancePenalty(model, alpha=price / (750 * sigma**2))  # 750 examples in the certificate
    for inputs, targets in batches * epochs:
        for probe in opt.probes():
            with probe:
                (criterion(model(inputs), targets) + penalty()).backward()
        opt.step()
        opt.zero_grad()


certificates, errors = [], []
for sigma in SIGMAS:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    train(model, for_prior, sigma=sigma, epochs=20)
    prior = copy.deepcopy(model.state_dict())
    train(model, for_bound, sigma=sigma, epochs=6, price=9.2)
    certificates.append(fm.certify(model, prior=prior, batches=for_bound, sigma=sigma, num_passes=50, seed=0))
    with torch.no_grad():
        errors.append(torch.cat([model(inputs).argmax(1) != targets for inputs, targets in test]).float().mean().item())

print(certificates[1])

# %%
# Each bound is a sum. These are three certificates, and each holds with 95 %; to take the lowest of them, say
# ``sigma=[...]`` in one call, which pays for the search.

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
names = [f"σ = {sigma}" for sigma in SIGMAS]
parts = {
    "on the examples": [c.terms["empirical risk"] for c in certificates],
    "Monte-Carlo slack": [c.terms["Monte-Carlo slack"] for c in certificates],
    "complexity slack": [c.terms["complexity slack"] for c in certificates],
}
bottom = torch.zeros(len(SIGMAS))
for (part, heights), color in zip(parts.items(), ("#0064b4", "#7fb2da", "#c9ced4"), strict=True):
    ax.bar(names, heights, bottom=bottom, color=color, width=0.6, label=part)
    bottom += torch.tensor(heights)
ax.plot(names, errors, "D", color="#a8431f", label="test error, weights alone")
ax.set_ylabel("error")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()

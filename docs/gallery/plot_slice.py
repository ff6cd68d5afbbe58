r"""
SGD and NSO on one scale
========================

Two minima of the same network on the same 300 digits, of which 30 % carry a random label: found from the same start
with the same number of gradients, by SGD and by NSO. The loss around them is drawn along random directions whose
filters are as long as the network's own (Li et al., 2018), so that the two curves can be compared.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import flatmin as fm
from flatmin.landscape import surface

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
test = [(x[1000:], y[1000:])]
x, y, generator = x[:300], y[:300].clone(), torch.Generator().manual_seed(0)
y[:90] = torch.randint(10, (90,), generator=generator)
train = [(x, y)]
criterion = nn.CrossEntropyLoss()


def trained(sigma, num_steps):
    """Train from the same start; without noise it is SGD, which takes one gradient a step instead of two."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), sigma=sigma, seed=0)
    for step in range(num_steps):
        batch = torch.randint(300, (50,), generator=torch.Generator().manual_seed(step))
        for probe in opt.probes():
            with probe:
                criterion(model(x[batch]), y[batch]).backward()
        opt.step()
        opt.zero_grad()
    return model


models = {"SGD": trained(0.0, 800), "NSO, σ = 0.1": trained(0.1, 400)}

# %%
# The same three directions for both, each scaled by the weights that it starts from; the line is their mean.

coordinates = torch.linspace(-1, 1, 21)
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharey=True)
for ax, (title, batches) in zip(axes, {"training data": train, "test data": test}.items(), strict=True):
    for (name, model), color in zip(models.items(), ("#5c6773", "#0064b4"), strict=True):
        losses = []
        for seed in range(3):
            direction = fm.landscape.random_directions(model, seed=seed)[:1]
            losses.append(surface(model, criterion, batches, coordinates=coordinates, directions=direction).loss)
            ax.plot(coordinates, losses[-1], color=color, alpha=0.2, lw=1)
        ax.plot(coordinates, torch.stack(losses).mean(0), color=color, label=name)
    ax.set(title=title, xlabel="multiple of the direction", yscale="log")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("loss")
axes[0].legend(frameon=False)
plt.show()

# %%
# Numbers say more than pictures: the trace of the Hessian of the training loss, which is exact for this network, what
# noise of σ = 0.05 costs, and the test accuracy. This is one seed; :doc:`../choosing` has many, and intervals.

for name, model in models.items():
    trace = fm.trace(fm.Hessian(model, criterion, train))
    gap = fm.perturbation_gap(model, criterion, train, sigma=0.05, num_samples=20, seed=0)
    with torch.no_grad():
        right = (model(test[0][0]).argmax(1) == test[0][1]).float().mean().item()
    print(f"{name}: trace {trace.value:.3g}, gap {gap.value:.3g} ± {gap.stderr:.1g}, accuracy {right:.1%}")

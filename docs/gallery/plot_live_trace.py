r"""
The trace while training
========================

NSO evaluates the gradient at :math:`w + u` and :math:`w - u`. The two together know the curvature along the noise,
:math:`\langle g_+ - g_-, u\rangle / 2\sigma^2`, whose mean is the trace of the Hessian to order :math:`\sigma^2`. The
optimizer keeps the latest of these numbers, so the trace is there while training goes on, with its standard error, and
without a gradient more.

Here it is beside the trace that is measured, every 50 steps, on all training data.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import flatmin as fm

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32)[:1000] / 16, torch.tensor(labels)[:1000]
model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
criterion = nn.CrossEntropyLoss()

# %%
# The loop is that of every training. ``Monitor`` reads the live trace every 10 steps; here it is kept in a list.

opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), sigma=0.02, seed=0)
monitor = fm.Monitor(opt, every=10)
live, measured = [], []
for step in range(1, 301):
    batch = torch.randint(len(y), (100,), generator=torch.Generator().manual_seed(step))
    for probe in opt.probes():
        with probe:
            loss = criterion(model(x[batch]), y[batch])
            loss.backward()
    opt.step()
    opt.zero_grad()
    if reading := monitor.log(step, loss=loss.detach()):
        live.append((step, reading.trace.value, reading.trace.stderr))
    if step % 50 == 0:
        found = fm.trace(fm.Hessian(model, criterion, [(x, y)]), num_matvecs=40, seed=0)
        measured.append((step, found.value, found.stderr))

# %%
# The live trace looks back over the latest steps, on the batches of those steps; the measured one is of the weights as
# they stand. So the first is noisier, and late while the trace moves fast.

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
steps, values, errors = torch.tensor(live).T
ax.fill_between(steps, values - 2 * errors, values + 2 * errors, color="#0064b4", alpha=0.2, lw=0)
ax.plot(steps, values, color="#0064b4", label="live, with two standard errors")
steps, values, errors = torch.tensor(measured).T
ax.errorbar(steps, values, 2 * errors, fmt="o", color="#a8431f", capsize=3, label="measured on all data")
ax.set(xlabel="step", ylabel="trace of the Hessian", ylim=(0, None))
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()

r"""
How much noise a network bears
==============================

A σ that another network was trained with says little about this one. A rise of the loss can be compared:
:func:`flatmin.find_sigma` adds noise of growing size and reports where the loss has risen by a tenth of itself. It
changes nothing in the network. :doc:`../choosing-sigma` says how good the proposal is.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import flatmin as fm
from flatmin.landscape import plot_radius

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
held_out = list(zip(x[1000:].split(100), y[1000:].split(100), strict=True))
model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10))
criterion = nn.CrossEntropyLoss()

# %%
# Asked at the start of training, on data that are held out: the number to begin a search with.

start = fm.find_sigma(model, criterion, held_out, seed=0)
print(start)

# %%
# Asked again after training, the same network bears less: the loss is lower, and so is a tenth of it.

optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for step in range(300):
    batch = torch.randint(1000, (100,), generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    criterion(model(x[batch]), y[batch]).backward()
    optimizer.step()
later = fm.find_sigma(model, criterion, held_out, seed=0)
print(later)

# %%
# On logarithmic axes a straight line of slope 2 is the quadratic regime, where noise is a penalty on the trace.

plot_radius(start)

# %%
# And after training:

plot_radius(later)

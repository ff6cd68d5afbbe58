r"""
The spectrum of a minimum
=========================

A trained network has a few large eigenvalues and thousands that are almost zero. :func:`flatmin.spectral_density`
shows how many lie where, from products with the Hessian alone; :func:`flatmin.top_eigenvalues` finds the large ones,
each with a bound on its error; :func:`flatmin.layerwise` says which layers they sit in.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import flatmin as fm
from flatmin.landscape import plot_density, plot_layers

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32)[:1000] / 16, torch.tensor(labels)[:1000]
model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10))
criterion = nn.CrossEntropyLoss()

optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for step in range(300):
    batch = torch.randint(len(y), (100,), generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    criterion(model(x[batch]), y[batch]).backward()
    optimizer.step()

# %%
# One call measures everything and shares what can be shared. Its text is what one would look at first.

found = fm.measure(model, criterion, [(x, y)], eigenvalues=10, seed=0)
print(found)

# %%
# The density, with the eigenvalues as its outliers and a confidence band.

plot_density(found.density)

# %%
# And the layers: their shares of the trace add up to one.

plot_layers(found.layers)

"""What the tests of attach share: the noise of a micro-batch written out, and gradients at displaced weights."""

import copy

import torch

import flatmin as fm
from flatmin.optim.attach import attach
from problems import loss
from reference.draws import noise

COUNT, SEED, STEP = "perturbation_micro_batch", "perturbation_seed", "perturbation_step"


def sgd(model, lr=0.1, **options):
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def attached(model, optimizer=None, sigma=0.05, **options):
    """Return an optimizer and its attachment."""
    optimizer = sgd(model) if optimizer is None else optimizer
    return optimizer, attach(model, optimizer, sigma=sigma, **options)


def displacement(model, number, *, sigma=0.05, seed=0, law=None):
    """The displacement of micro-batch ``number``: the draw of its pair, with a minus for every second."""
    drawn = noise(law or fm.Gaussian(), list(model.parameters()), seed=seed, step=number // 2, draw=0)
    return [(-1) ** number * sigma * u for u in drawn]


def gradients_at(model, offsets, batch, loss=loss):
    """Plain gradients at w + u, on a copy that no hook knows."""
    plain = copy.deepcopy(model)
    parameters = list(plain.parameters())
    with torch.no_grad():
        for parameter, offset in zip(parameters, offsets):
            parameter.add_(offset)
    return torch.autograd.grad(loss(plain, batch), parameters)


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def close(a, b, rtol=1e-12, atol=1e-14):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol)

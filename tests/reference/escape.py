"""Algorithms 1 and 2 of Ahn, Jadbabaie, Sra (arXiv:2305.15659), line by line, over lists of tensors."""

import flatmin as fm
from reference.draws import noise, sign


def dot(a, b):
    return sum((x * y).sum() for x, y in zip(a, b))


def norm(a):
    return dot(a, a) ** 0.5


def project_out(u, v):
    """Definition 4: u - <u, v> v / |v|^2, and u where v is zero."""
    square = dot(v, v)
    return u if square == 0 else [x - dot(u, v) * y / square for x, y in zip(u, v)]


def descend(x, m, g, *, eta, mu):
    m = [mu * a - eta * b for a, b in zip(m, g)]
    return [a + b for a, b in zip(x, m)], m


def smoothed(weights, gradient, *, rho, eta, steps, seed, eta_far=None, threshold=float("inf"), mu=0.0):
    """Algorithm 1. ``eta_far`` is eta prime; ``mu`` a momentum that the paper does not have."""
    x, m = [w.clone() for w in weights], [w * 0 for w in weights]
    far = 1.0 if eta_far is None else eta_far / eta
    for t in range(steps):
        g = gradient(x)
        if norm(g) <= threshold:
            u = noise(fm.Gaussian(), x, seed=seed, step=t)
            u = [a / norm(u) for a in u]
            v = project_out(gradient([a + rho * b for a, b in zip(x, u)]), g)
            x, m = descend(x, m, [a + b for a, b in zip(g, v)], eta=eta, mu=mu)
        else:
            x, m = descend(x, m, [far * a for a in g], eta=eta, mu=mu)
    return x


def sharpness_aware(
    weights, gradient, *, rho, eta, steps, seed, of_example=None, eta_far=None, threshold=float("inf"), mu=0.0
):
    """Algorithm 2. ``of_example(x, t)`` is the gradient of the example of step t; the full one if not given."""
    x, m = [w.clone() for w in weights], [w * 0 for w in weights]
    far = 1.0 if eta_far is None else eta_far / eta
    of_example = of_example or (lambda x, t: gradient(x))
    for t in range(steps):
        g = gradient(x)
        if norm(g) <= threshold:
            h = of_example(x, t)
            up = [a + rho * sign(seed=seed, step=t) * b / norm(h) for a, b in zip(x, h)]
            v = project_out(of_example(up, t), g)
            x, m = descend(x, m, [a + b for a, b in zip(g, v)], eta=eta, mu=mu)
        else:
            x, m = descend(x, m, [far * a for a in g], eta=eta, mu=mu)
    return x

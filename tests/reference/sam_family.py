"""The sharpness-aware family, line by line from the papers, with heavy-ball momentum where there is a base."""

import flatmin as fm
from reference.draws import noise


def norm(tensors):
    return sum((t * t).sum() for t in tensors) ** 0.5


def descend(W, M, direction, *, eta, mu):
    M = [mu * m - eta * t for m, t in zip(M, direction)]
    return [w + m for w, m in zip(W, M)], M


def train_unnormalized(weights, gradient, *, rho, eta, mu, steps):
    """w <- w - eta grad L(w + rho grad L(w)), Andriushchenko and Flammarion, arXiv:2206.06232."""
    W, M = [w.clone() for w in weights], [w * 0 for w in weights]
    for _ in range(steps):
        up = [w + rho * g for w, g in zip(W, gradient(W))]
        W, M = descend(W, M, gradient(up), eta=eta, mu=mu)
    return W


def train_adaptive(weights, gradient, *, rho, xi, is_weight, eta, mu, steps):
    """Algorithm 1 of Kwon et al., arXiv:2102.11600: T = |w| + xi for weights, 1 for others; eps = rho T^2 g / |T g|."""
    W, M = [w.clone() for w in weights], [w * 0 for w in weights]
    for _ in range(steps):
        g = gradient(W)
        T = [w.abs() + xi if here else w * 0 + 1 for w, here in zip(W, is_weight)]
        length = norm([t * d for t, d in zip(T, g)])
        up = [w + rho * t**2 * d / length for w, t, d in zip(W, T, g)]
        W, M = descend(W, M, gradient(up), eta=eta, mu=mu)
    return W


def filter_norms(w):
    """The norm of each slice along the first dimension; of all of it where there is one dimension."""
    rows = w.reshape(w.shape[0], -1) if w.dim() > 1 else w.reshape(1, -1)
    norms = [float((row * row).sum()) ** 0.5 for row in rows]
    return w.new_tensor(norms).reshape(-1, *[1] * (w.dim() - 1)) if w.dim() > 1 else w.new_tensor(norms[0])


def train_random(weights, gradient, *, rho, sigma, lam, eta, mu, steps, seed):
    """Liu et al., NeurIPS 2022: delta ~ N(0, sigma^2 |w_filter|^2), eps = rho (delta + lam g) / |delta + lam g|."""
    W, M = [w.clone() for w in weights], [w * 0 for w in weights]
    for i in range(steps):
        delta = [sigma * filter_norms(w) * n for w, n in zip(W, noise(fm.Gaussian(), W, seed=seed, step=i))]
        g = gradient([w + d for w, d in zip(W, delta)])
        direction = [d + lam * t for d, t in zip(delta, g)]
        length = norm(direction)
        up = [w + rho * d / length for w, d in zip(W, direction)]
        W, M = descend(W, M, gradient(up), eta=eta, mu=mu)
    return W


def train_bayesian(weights, gradient, *, rho, N, beta1, beta2, delta, gamma, s0, eta, steps, seed):
    """Algorithm 1 of Moellenhoff and Khan, arXiv:2210.01620, in the order of the authors' code."""
    W, M, S = [w.clone() for w in weights], [w * 0 for w in weights], [w * 0 + s0 for w in weights]
    for i in range(steps):
        n = noise(fm.Gaussian(), W, seed=seed, step=i)
        g = gradient([w + z / (N * s) ** 0.5 for w, z, s in zip(W, n, S)])
        g2 = gradient([w + rho * d / s for w, d, s in zip(W, g, S)])
        M = [beta1 * m + (1 - beta1) * (d + delta * w) for m, d, w in zip(M, g2, W)]
        W = [w - eta * m / s for w, m, s in zip(W, M, S)]
        S = [beta2 * s + (1 - beta2) * (s**0.5 * d.abs() + gamma + delta) for s, d in zip(S, g)]
    return W

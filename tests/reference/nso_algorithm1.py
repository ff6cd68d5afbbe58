"""Algorithm 1 of Zhang, Li, Ju (arXiv:2306.08553), line by line, with the momentum of equation (15).

for i = 0 .. T-1:
    for j = 1 .. k:
        U_i^(j) ~ P independently
        G_i^(j) = g_z(W_i + U_i^(j)) + g_z(W_i - U_i^(j))
    G_i = 1/(2k) sum_j G_i^(j)
    M_{i+1} = mu M_i - eta G_i
    W_{i+1} = W_i + M_{i+1}
"""

from reference.draws import noise


def train(weights, gradient, *, sigma, k, law, eta, mu, steps, seed, unit=lambda w: 1.0, clean_weight=0.0):
    """``weights``: list of tensors; ``gradient``: list of tensors to list of tensors. Returns the last weights.

    ``unit(w)`` is what sigma is relative to.
    """
    W = [w.clone() for w in weights]
    M = [w * 0 for w in W]
    for i in range(steps):
        G = [w * 0 for w in W]
        for j in range(k):
            U = [sigma * unit(w) * u for w, u in zip(W, noise(law, W, seed=seed, step=i, draw=j))]
            at_plus = gradient([w + u for w, u in zip(W, U)])
            at_minus = gradient([w - u for w, u in zip(W, U)])
            G = [g + p + m for g, p, m in zip(G, at_plus, at_minus)]
        G = [g / (2 * k) for g in G]
        if clean_weight:  # the mixed objective of the authors' code
            G = [clean_weight * c + (1 - clean_weight) * g for c, g in zip(gradient(W), G)]
        M = [mu * m - eta * g for m, g in zip(M, G)]
        W = [w + m for w, m in zip(W, M)]
    return W


def train_plain(weights, gradient, *, eta, mu, steps):
    """Gradient descent with momentum."""
    W = [w.clone() for w in weights]
    M = [w * 0 for w in W]
    for _ in range(steps):
        M = [mu * m - eta * g for m, g in zip(M, gradient(W))]
        W = [w + m for w, m in zip(W, M)]
    return W


def train_one_sided(weights, gradient, *, sigma, k, law, eta, mu, steps, seed):
    """The paper's WP-SGD: W_{i+1} = W_i - eta/k sum_j g_z(W_i + U_i^(j)), with the same momentum."""
    W = [w.clone() for w in weights]
    M = [w * 0 for w in W]
    for i in range(steps):
        G = [w * 0 for w in W]
        for j in range(k):
            U = [sigma * u for u in noise(law, W, seed=seed, step=i, draw=j)]
            G = [g + p for g, p in zip(G, gradient([w + u for w, u in zip(W, U)]))]
        M = [mu * m - eta * g / k for m, g in zip(M, G)]
        W = [w + m for w, m in zip(W, M)]
    return W

"""Algorithm 1 of Foret et al. (arXiv:2010.01412) with p = 2, line by line, with heavy-ball momentum.

g = grad L_B(w);  eps = rho g / |g|_2;  g' = grad L_B(w + eps);  w <- w - eta g'
"""


def train(weights, gradient, *, rho, eta, mu, steps):
    W = [w.clone() for w in weights]
    M = [w * 0 for w in W]
    for _ in range(steps):
        g = gradient(W)
        norm = sum((t * t).sum() for t in g) ** 0.5
        eps = [rho * t / norm for t in g]
        g = gradient([w + e for w, e in zip(W, eps)])
        M = [mu * m - eta * t for m, t in zip(M, g)]
        W = [w + m for w, m in zip(W, M)]
    return W

"""The authors' two measurements (Zhang, Li and Ju, arXiv:2306.08553) on a dense matrix, step by step.

Written from a description of what they compute: blocks of unit length for "lambda_1", the stop rule on the running mean
for the trace.
"""

import torch


def blockwise(vector, sizes):
    out = []
    for part in vector.split(sizes):
        length = (part * part).sum() ** 0.5
        out.append(part / (length + 1e-6))
    return torch.cat(out)


def lambda_1(H, sizes, start, *, max_iterations=100, tol=1e-3):
    v = blockwise(start, sizes)
    old = None
    for _ in range(max_iterations):
        Hv = H @ v
        new = [float((a * b).sum()) for a, b in zip(v.split(sizes), Hv.split(sizes))]
        v = blockwise(Hv, sizes)
        if old is not None and abs(sum(old) - sum(new)) / (abs(sum(old)) + 1e-6) < tol:
            break
        old = new
    return old


def partial_trace(H, probes, *, tol=1e-3):
    seen, mean = [], 0.0
    for z in probes:
        seen.append(float(z @ H @ z))
        new = sum(seen) / len(seen)
        if abs(new - mean) / (abs(mean) + 1e-6) < tol:
            return new, len(seen)
        mean = new
    return mean, len(seen)

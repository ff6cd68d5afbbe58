"""The memory that the exact trace takes."""

import pytest
import torch
from torch import nn

from flatmin.curvature import Hessian, ggn_trace
from flatmin.curvature.ghost import run
from flatmin.curvature.ghost.engine import Ghost
from flatmin.curvature.ghost.forms import Outer


def test_the_budget_is_obeyed(monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
        ).double()
    x = torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batches = [(x, torch.arange(20) % 3)]
    found = ggn_trace(Hessian(model, nn.functional.cross_entropy, batches))
    made = []
    monkeypatch.setattr(run, "available_memory", lambda device: pytest.fail("a budget was given"))
    monkeypatch.setattr(run, "Ghost", lambda *args, **options: made.append(Ghost(*args, **options)) or made[-1])
    frugal = ggn_trace(Hessian(model, nn.functional.cross_entropy, batches, memory=0))
    assert frugal.value == pytest.approx(found.value, rel=1e-12)
    forms = [form for forms in made[-1]._forms.values() for _, form in forms if isinstance(form, Outer)]
    kept = [form for form in forms if form.by_gram]
    assert kept  # positions are few where the gradient itself would be larger
    assert len(kept) < len(forms)
    for form in kept:
        assert form.memory <= form.left.groups * form.left.width * form.right.width * form.dtype.itemsize

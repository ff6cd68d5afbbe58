"""Two ranks equal one process: DDP, FSDP2, noise over ranks, checkpoints. What runs is in tests/ranks.py."""

import json

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import ranks
from launch import launch
from methods_table import METHODS, every_method
from problems import data


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The run of all cells on two ranks: the folder, the cells that passed, and the output."""
    folder = tmp_path_factory.mktemp("ranks")
    outputs = launch("ranks.py", folder, timeout=600)
    passed = [json.loads((folder / f"passed-{rank}.json").read_text()) for rank in range(2)]
    return folder, [cell for cell in passed[0] if cell in passed[1]], "\n".join(output for _, output in outputs)


CELLS = [(loop, method.name) for loop in ranks.LOOPS for method in METHODS if ranks.applies(loop, method)]


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=pytest.mark.loop(name), id=f"{name}-{m}") for name, m in CELLS]
)
def test_two_ranks(run, method, request):
    (loop,) = request.node.get_closest_marker("loop").args
    assert [loop, method] in run[1], run[2]


@pytest.mark.parametrize("check", ranks.BESIDE, ids=lambda check: check.__name__)
def test_two_ranks_beside_the_table(run, check):
    assert [check.__name__, ""] in run[1], run[2]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # the point of it
@pytest.mark.loop("resumed on one rank")
@every_method
def test_a_checkpoint_of_two_ranks_goes_on_in_one_process(run, method):
    """Noise that the ranks share does not depend on their number."""
    from torch.distributed import checkpoint

    model = ranks.net()
    opt = ranks.build(method, model)
    state = dict(zip(("model", "optimizer"), get_state_dict(model, opt), strict=True))
    checkpoint.load(state, checkpoint_id=run[0] / f"checkpoint-{method}")
    set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    for _ in range(ranks.STEPS - 2):
        ranks.step(opt, model, data())
    ranks.assert_close(ranks.weights(model), ranks.alone(method, "probes")[0])
    assert torch.tensor([g["perturbation_step"] for g in opt.param_groups]).eq(ranks.STEPS).all()

"""Hyperparameters by parameter name and by class of module, and sigma relative to the norms of filters."""

import functools

import pytest
import torch
from torch import nn

import flatmin as fm
from methods_table import noise_methods
from problems import data, loss, mlp, same, seeded

SGD = torch.optim.SGD


def net():
    return seeded(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3))
    ).double()


def displacements(opt, model, batch=None):
    """How far the first probe moves each parameter."""
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for probe in opt.probes():
        with probe:
            moved = {n: p.detach() - before[n] for n, p in model.named_parameters()}
            loss(model, batch or data()).backward()
    return moved


@noise_methods
def test_the_first_pattern_that_fits_decides(method):
    model = net()
    sigma = {"3.*": 0.3, nn.LayerNorm: 0.0, "*.bias": 0.0, "*": 0.1}
    moved = displacements(method.build(SGD(model.parameters(), lr=0.1), sigma=sigma), model)
    unit = displacements(method.build(SGD(model.parameters(), lr=0.1), sigma=1.0), model)
    expected = {"0.weight": 0.1, "0.bias": 0, "1.weight": 0, "1.bias": 0, "3.weight": 0.3, "3.bias": 0.3,
                "4.weight": 0.1, "4.bias": 0}  # fmt: skip
    for name, scale in expected.items():
        torch.testing.assert_close(moved[name], scale * unit[name], rtol=1e-12, atol=1e-14)


def test_schedules_stand_in_a_mapping_and_in_a_group():
    model = net()
    groups = [
        {"params": list(model[:2].parameters())},
        {"params": list(model[3:].parameters()), "sigma": {"*.bias": 0.0, "*": fm.schedules.linear(0.0, 0.4, 4)}},
    ]
    opt = fm.NSO(SGD(groups, lr=0.1), sigma={nn.LayerNorm: 0.0, "*": 0.2})
    for step in range(3):
        values = opt._groups.radii()["sigma"].values
        assert values == (0.2, 0.2, 0.0, 0.0, step / 10, 0.0, step / 10, 0.0)
        for probe in opt.probes():
            with probe:
                loss(model, data()).backward()
        opt.step()


def test_a_mapping_that_changes_is_matched_anew():
    model, sigma = net(), {"*.bias": 0.0, "*": 0.2}
    opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma={"*": 0.0})
    opt.param_groups[0]["sigma"] = sigma
    for changed, expected in (({}, (0.2, 0.0)), ({"*": 0.3}, (0.3, 0.0)), ({"*.bias": 0.1}, (0.3, 0.1))):
        sigma.update(changed)
        assert opt._groups.radii()["sigma"].values == expected * 4
    opt.add_param_group({"params": [nn.Parameter(torch.ones(2))], "sigma": 0.5})
    assert opt._groups.radii()["sigma"].values == ((0.3, 0.1) * 4 + (0.5,))


def test_mappings_stay_out_of_checkpoints_and_in_the_optimizer():
    model = net()
    opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma={"*.bias": 0.0, "*": 0.2})
    state = opt.state_dict()
    assert "sigma" not in state["param_groups"][0]
    opt.load_state_dict(state)
    assert set(opt._groups.radii()["sigma"].values) == {0.0, 0.2}
    assert opt._groups.radii()["sigma"][1] == 0.0


@pytest.mark.parametrize("wrap", ["ddp", "compile", "none"])
def test_names_are_those_of_the_model_whatever_wraps_it(wrap):
    model = net()
    wrappers = {"ddp": nn.DataParallel, "compile": lambda m: torch.compile(m, backend="eager"), "none": lambda m: m}
    outer = wrappers[wrap](model)
    opt = fm.NSO(SGD(outer.parameters(), lr=0.1), sigma={"0.weight": 0.5, "*": 0.0})
    assert opt._groups.radii()["sigma"].values == (0.5, *[0.0] * 7)


def test_a_part_called_module_keeps_its_name():
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma={"module.bias": 0.5, "*": 0.0})
    assert opt._groups.radii()["sigma"].values == (0.0, 0.5, 0.0, 0.0)


def test_names_within_the_model_fit_though_another_module_holds_it():
    model = net()
    pair = nn.ModuleDict({"student": model, "teacher": net()})
    opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma={"0.bias": 0.5, "student.1.*": 0.25, "*": 0.0})
    assert opt._groups.radii()["sigma"].values == (0.0, 0.5, 0.25, 0.25, *[0.0] * 4)
    del pair


def test_a_model_given_by_name_is_asked_for_names():
    model = net()
    wrapper = nn.ModuleDict({"encoder": model})
    opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma={"encoder.0.*": 0.5, "*": 0.0}, model=wrapper)
    assert opt._groups.radii()["sigma"].values == (0.5, 0.5, *[0.0] * 6)


def test_a_parameter_in_no_module_has_no_name():
    w = nn.Parameter(torch.ones(3))
    assert fm.NSO(SGD([w], lr=0.1), sigma={"*": 0.1})._groups.radii()["sigma"] == 0.1
    with pytest.raises(fm.ArgumentError, match=r"a parameter that is in no module.*last entry"):
        fm.NSO(SGD([w], lr=0.1), sigma={"weight*": 0.1})


def test_copies_keep_their_names():
    import copy
    import pickle

    for clone in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        model = net()
        opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma={"*.bias": 0.0, "*": 0.2})
        other, opt2 = clone((model, opt))
        for m, o in ((model, opt), (other, opt2)):
            for probe in o.probes():
                with probe:
                    loss(m, data()).backward()
            o.step()
        assert same(model.state_dict(), other.state_dict())


class TestNoiseScale:
    def shapes(self):
        return seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 4))).double()

    def norms(self, model, unit):
        found = {}
        for name, w in model.named_parameters():
            rows = w.detach().flatten(1) if w.dim() > 1 and unit == "filter" else w.detach().reshape(1, -1)
            norm = rows.square().sum(1).sqrt()
            found[name] = norm.reshape(-1, *[1] * (w.dim() - 1)) if len(norm) > 1 else norm[0]
        return found

    @pytest.mark.parametrize("unit", ["filter", "parameter"])
    def test_sigma_is_relative_to_norms(self, unit):
        model, batch = self.shapes(), (torch.ones(2, 2, 5, 5).double(), torch.tensor([0, 1]))
        moved = displacements(fm.NSO(SGD(model.parameters(), lr=0.1), sigma=0.1, noise_scale=unit), model, batch)
        plain = displacements(fm.NSO(SGD(model.parameters(), lr=0.1), sigma=0.1), model, batch)
        for name, norm in self.norms(model, unit).items():
            torch.testing.assert_close(moved[name], plain[name] * norm, rtol=1e-12, atol=1e-14)

    def test_a_group_has_a_unit_of_its_own_which_travels(self):
        model = mlp()
        groups = [
            {"params": list(model[0].parameters()), "noise_scale": "parameter"},
            {"params": list(model[2].parameters())},
        ]
        opt = fm.NSO(SGD(groups, lr=0.1), sigma=0.1)
        assert opt._groups.hyperparameters()["noise_scale"].values == ("parameter", "parameter", *["absolute"] * 2)
        other = mlp()
        split = [{"params": list(other[0].parameters())}, {"params": list(other[2].parameters())}]
        opt2 = fm.NSO(SGD(split, lr=0.1), sigma=0.1)
        opt2.load_state_dict(opt.state_dict())
        assert [g["noise_scale"] for g in opt2.param_groups] == ["parameter", "absolute"]
        old = opt2.state_dict()
        for group in old["param_groups"]:
            del group["noise_scale"]
        opt.load_state_dict(old)  # from before units were kept: a group's own stays
        assert [g["noise_scale"] for g in opt.param_groups] == ["parameter", "absolute"]
        with pytest.raises(fm.ArgumentError, match="noise_scale of a parameter group is 'norm'"):
            fm.NSO(SGD([{"params": other.parameters(), "noise_scale": "norm"}], lr=0.1), sigma=0.1)

    def test_scaling_a_layer_scales_its_noise(self):
        """Filter-wise noise does not see how two layers of a ReLU network share their scale."""
        losses = []
        for factor in (1.0, 10.0):
            model = seeded(lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)))
            model.double()
            with torch.no_grad():
                model[0].weight.mul_(factor)
                model[2].weight.div_(factor)
            opt = fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.1, noise_scale="filter")
            for probe in opt.probes():
                with probe:
                    value = loss(model, data())
                    value.backward()
                    losses.append(value.item())
            opt.step()
        torch.testing.assert_close(losses[:2], losses[2:], rtol=1e-12, atol=0)

    def test_the_live_trace_is_silent(self):
        """<g, u> is then a trace weighted by squared norms, and not the trace."""
        model = mlp()
        opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma=0.1, noise_scale="filter")
        displacements(opt, model)
        opt.step()
        assert opt.trace_estimate is None


def test_asam_adapts_what_is_called_weight():
    model = net()
    opt = fm.ASAM(SGD(model.parameters(), lr=0.1), rho=0.5, eta=0.02)
    arguments = opt._arguments()
    assert arguments["adaptive"].values == (1.0, 0.0) * 4
    assert arguments["eta"].values == (0.02, 1.0) * 4
    only_linear = fm.ASAM(SGD(model.parameters(), lr=0.1), rho=0.5, adaptive={nn.Linear: True, "*": False})
    assert only_linear._arguments()["adaptive"].values == (1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0)
    w = nn.Parameter(torch.ones(3))
    assert fm.ASAM(SGD([w], lr=0.1), rho=0.5)._arguments()["adaptive"] == 1.0


def test_asam_is_invariant_under_scaling_layers_against_each_other():
    """The theorem that names it: with eta = 0 and every tensor adapted, the loss uphill does not change."""
    losses = []
    for factor in (1.0, 10.0):
        model = seeded(lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)))
        model.double()
        with torch.no_grad():
            model[0].weight.mul_(factor)
            model[2].weight.div_(factor)
        opt = fm.ASAM(SGD(model.parameters(), lr=0.0), rho=0.5, eta=0.0)
        for probe in opt.probes():
            with probe:
                value = loss(model, data())
                value.backward()
        losses.append(value.item())
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


def test_pure_driver_takes_filter_noise():
    w = {"x": torch.ones(2, 3, dtype=torch.float64)}
    flow = functools.partial(fm.flows.wpsgd, sigma=1.0, noise=fm.Rademacher(), noise_scale="filter")
    g = fm.gradient(flow, lambda w: (w["x"] ** 2).sum() / 2, w)["x"]  # the displaced point itself
    torch.testing.assert_close((g - 1).abs(), torch.full_like(g, 3**0.5))

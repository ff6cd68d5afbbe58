"""Lightning's trainer against loops written by hand, on digits."""

import pytest
import torch

import flatmin as fm
from integrations.tasks import digits, network, steps_of
from problems import same, snapshot

lightning = pytest.importorskip("lightning", reason="lightning is not installed")
from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402

from flatmin.integrations.lightning import AttachCallback, ProbesCallback, probes  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]
METHODS = {
    "nso": lambda base: fm.NSO(base, sigma=0.02, seed=5),
    "wpsgd": lambda base: fm.WPSGD(base, sigma=0.02, num_perturbations=2),
    "sam": lambda base: fm.SAM(base, rho=0.05),
    "usam": lambda base: fm.USAM(base, rho=0.05),
    "asam": lambda base: fm.ASAM(base, rho=0.5),
    "rsam": lambda base: fm.RSAM(base, rho=0.05, sigma=0.01),
}
# To the frameworks ASAM is SAM, USAM is RSAM and WP-SGD is NSO: they differ in what the library's own tests see.
SLOW = ("asam", "usam", "wpsgd")
every_method = pytest.mark.parametrize(
    "method", [pytest.param(method, marks=[pytest.mark.slow] * (method in SLOW)) for method in METHODS]
)
cross_entropy = torch.nn.functional.cross_entropy


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def micro_batches(size=6):
    images, classes = digits()
    return list(zip(images.split(size), classes.split(size), strict=True))


class Classifier(lightning.LightningModule):
    """What a user has: a network, a training step that logs, an optimizer with a schedule."""

    def __init__(self, build=lambda base: base, dropout=0.2, seen=None):
        super().__init__()
        self.network, self.build, self.seen = network(dropout), build, seen

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        if self.seen is not None:
            self.seen.append([p.detach().clone() for p in self.network.parameters()])
        loss = cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss, "batch_idx": batch_idx}

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", cross_entropy(self(x), y))

    def configure_optimizers(self):
        optimizer = self.build(sgd(self))
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


class Record(lightning.pytorch.loggers.Logger):
    """A tracker that keeps what it is told."""

    name, version = "record", 0

    def __init__(self):
        super().__init__()
        self.told = []

    def log_hyperparams(self, *args, **kwargs):
        """Not looked at."""

    def log_metrics(self, metrics, step=None):
        self.told.append(dict(metrics))


def trainer(folder, *callbacks, **changes):
    settings = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(folder),
        "num_sanity_val_steps": 0, "log_every_n_steps": 1, "limit_val_batches": 0,
    }  # fmt: skip
    return lightning.Trainer(callbacks=list(callbacks), **{**settings, **changes})


def loader(size=6):
    images, classes = digits()
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, classes), batch_size=size)


def fit(folder, module, *callbacks, size=6, seed=0, ckpt_path=None, **changes):
    run = trainer(folder, *callbacks, **changes)
    torch.manual_seed(seed)
    run.fit(module, loader(size), loader(size), ckpt_path=ckpt_path)
    return run


def by_hand(model, optimizer, batches, parts=1, *, clip=None, autocast=None, epochs=1):
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    torch.manual_seed(0)
    loader(6).__iter__()  # which draws a seed, as Lightning's does
    for _ in range(epochs):
        for step in steps_of(batches, parts, len(batches) // parts):
            for x, y in step:
                for probe in optimizer.probes(loss_scale=1 / parts):
                    with probe:
                        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                            loss = cross_entropy(model(x), y)
                        (loss / parts).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    return optimizer


@every_method
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_automatic_optimization_is_the_loop_written_by_hand(method, precision, tmp_path):
    """With accumulation, clipping, mixed precision, and a schedule."""
    module = Classifier(METHODS[method], dropout=0.0)
    run = fit(tmp_path, module, ProbesCallback(), accumulate_grad_batches=2, gradient_clip_val=0.5, precision=precision)
    assert run.global_step == 4
    model = network()
    autocast = torch.bfloat16 if precision == "bf16-mixed" else None
    by_hand(model, METHODS[method](sgd(model)), micro_batches(), 2, clip=0.5, autocast=autocast)
    assert same(snapshot(module.network), snapshot(model))


@every_method
def test_16_mixed_changes_nothing_but_rounding(method, tmp_path):
    """The plugin of 16-mixed, with its scaler, on a CPU; autocast to half is what it is compared with."""
    module = Classifier(METHODS[method], dropout=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    fit(tmp_path, module, ProbesCallback(), accumulate_grad_batches=2, gradient_clip_val=0.5, plugins=[plugin])
    model = network()
    by_hand(model, METHODS[method](sgd(model)), micro_batches(), 2, clip=0.5, autocast=torch.float16)
    for name, value in snapshot(model).items():
        torch.testing.assert_close(module.network.state_dict()[name], value, rtol=1e-3, atol=2e-4)


def test_accumulation_equals_the_big_batch(tmp_path):
    results = []
    for size, parts in ((12, 1), (4, 3)):
        module = Classifier(METHODS["nso"], dropout=0.0)
        fit(tmp_path, module, ProbesCallback(), size=size, accumulate_grad_batches=parts)
        results.append(snapshot(module))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_radius_it_is_plain_lightning(method, tmp_path):
    """Bit for bit, dropout masks, logs and counters included."""

    def still(base):
        optimizer = METHODS[method](base)
        for group in optimizer.param_groups:
            group.update({name: 0.0 for name in ("sigma", "rho") if name in group})
        return optimizer

    told = []
    for build, callbacks in ((lambda base: base, []), (still, [ProbesCallback()])):
        module, record = Classifier(build), Record()
        run = fit(tmp_path, module, *callbacks, logger=record, accumulate_grad_batches=2, gradient_clip_val=0.5)
        losses = [{k: v for k, v in row.items() if "hessian" not in k} for row in record.told]
        told.append(
            (snapshot(module), [row for row in losses if "train_loss_step" in row or "train_loss_epoch" in row])
        )
        assert run.global_step == 4
    assert same(told[0][0], told[1][0])
    assert told[0][1] == told[1][1]


def test_the_live_trace_is_logged(tmp_path):
    module, record, callback = Classifier(METHODS["nso"], dropout=0.0), Record(), ProbesCallback()
    fit(tmp_path, module, callback, logger=record, accumulate_grad_batches=2, log_every_n_steps=2)
    told = [row for row in record.told if "hessian_trace" in row]
    assert len(told) == 2
    assert told[-1]["hessian_trace"] == pytest.approx(callback.trace_estimate.value, rel=1e-6)
    assert told[-1]["hessian_trace_stderr"] == pytest.approx(callback.trace_estimate.stderr, rel=1e-6)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_the_attach_callback_is_attach_in_a_loop_written_by_hand(precision, tmp_path):
    module, record, callback = Classifier(dropout=0.0), Record(), AttachCallback(sigma=0.02, seed=5)
    how = {"precision": precision}
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        how = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
    fit(tmp_path, module, callback, logger=record, accumulate_grad_batches=2, gradient_clip_val=0.5, **how)
    assert "training_step" not in vars(module)
    assert not module._forward_pre_hooks
    model = network()
    optimizer = sgd(model)
    handle = fm.attach(model, optimizer, sigma=0.02, seed=5)
    kinds = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    for step in steps_of(micro_batches(), 2, 4):
        for x, y in step:
            with torch.autocast("cpu", kinds[precision] or torch.bfloat16, enabled=kinds[precision] is not None):
                loss = cross_entropy(model(x), y)
            (loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    if precision == "16-mixed":
        for name, value in snapshot(model).items():
            torch.testing.assert_close(module.network.state_dict()[name], value, rtol=1e-3, atol=2e-4)
        return
    assert same(snapshot(module.network), snapshot(model))
    told = [row["hessian_trace"] for row in record.told if "hessian_trace" in row]
    assert told[-1] == pytest.approx(handle.trace_estimate.value, rel=1e-6)
    assert len(told) == 4


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")  # of the first run
@pytest.mark.parametrize("how", ["nso", "sam", "attach"])
def test_a_resumed_run_is_the_uninterrupted_one(how, tmp_path):
    """Bit for bit, from the end of the first epoch; with attach after an odd number of micro-batches."""

    def begin(epochs, seed, ckpt_path=None):
        attached = how == "attach"
        module = Classifier() if attached else Classifier(METHODS[how])
        module.network[3].p = 0.0
        callback = AttachCallback(sigma=0.02) if attached else ProbesCallback()
        saving = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path / "kept", "{epoch}", save_top_k=-1)
        changes = {"max_epochs": epochs, "enable_checkpointing": True, "limit_val_batches": 1}
        run = trainer(tmp_path, callback, saving, **changes)
        torch.manual_seed(seed)
        run.fit(module, loader(16), loader(16), ckpt_path=ckpt_path)
        return module, callback

    whole, one = begin(2, 0)
    resumed, other = begin(2, 1, tmp_path / "kept" / "epoch=0.ckpt")
    assert same(snapshot(whole), snapshot(resumed))
    if how != "sam":
        assert one.trace_estimate.num_matvecs == other.trace_estimate.num_matvecs == 6
        assert one.trace_estimate.value == other.trace_estimate.value


class Manual(Classifier):
    """Manual optimization: the points of the method, or a plain loop."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for probe in probes(self):
            with probe:
                x, y = batch
                self.manual_backward(cross_entropy(self(x), y))
        optimizer.step()
        optimizer.zero_grad()


@every_method
@pytest.mark.parametrize("half", [False, True])
def test_manual_optimization_is_the_loop_written_by_hand(method, half, tmp_path):
    module = Manual(METHODS[method], dropout=0.0)
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4))
    run = fit(tmp_path, module, ProbesCallback(), **({"plugins": [plugin]} if half else {}))
    assert run.global_step == 8
    model = network()
    by_hand(model, METHODS[method](sgd(model)), micro_batches(), autocast=torch.float16 if half else None)
    if not half:
        assert same(snapshot(module.network), snapshot(model))
    for name, value in snapshot(model).items():
        torch.testing.assert_close(module.network.state_dict()[name], value, rtol=1e-3, atol=2e-4)


class PlainManual(Manual):
    def training_step(self, batch, batch_idx):
        x, y = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(cross_entropy(self.network(x), y))
        optimizer.step()


def test_the_attach_callback_under_manual_optimization(tmp_path):
    module = PlainManual(dropout=0.0)
    fit(tmp_path, module, AttachCallback(sigma=0.02, seed=5, module="network"))
    model = network()
    optimizer = sgd(model)
    with fm.attach(model, optimizer, sigma=0.02, seed=5):
        for x, y in micro_batches():
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    assert same(snapshot(module.network), snapshot(model))


class Breaks(Classifier):
    def training_step(self, batch, batch_idx):
        if batch_idx == 3 and len(self.seen) > 6:
            raise RuntimeError("broken")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("attached", [False, True])
def test_an_exception_leaves_clean_weights_and_lightning_as_it_was(attached, tmp_path):
    seen = []
    module = Breaks((lambda base: base) if attached else METHODS["nso"], 0.0, seen)
    run = trainer(tmp_path, AttachCallback(sigma=0.02) if attached else ProbesCallback())
    if attached:
        seen.extend(range(7))
    before = None

    def remember(*_):
        nonlocal before
        before = snapshot(module)

    module.on_train_batch_start = remember
    with pytest.raises(RuntimeError, match="broken"):
        run.fit(module, loader(), loader())
    assert same(snapshot(module), before)
    assert "training_step" not in vars(module)
    assert "_make_closure" not in vars(run.fit_loop.epoch_loop.automatic_optimization)
    assert not module._forward_pre_hooks


class Skips(Classifier):
    def training_step(self, batch, batch_idx):
        return None


class Two(PlainManual):
    def configure_optimizers(self):
        return [sgd(self), sgd(self)]


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(fm.errors.ArgumentError, match=r"no method of flatmin \(SGD\).*or take AttachCallback"):
        fit(tmp_path, Classifier(), ProbesCallback())
    with pytest.raises(fm.errors.ArgumentError, match=r"The trainer has no ProbesCallback.*Pass Trainer"):
        fit(tmp_path, Manual(METHODS["nso"]))
    with pytest.raises(fm.errors.ArgumentError, match=r"not told which module.*AttachCallback.*module='network'"):
        fit(tmp_path, PlainManual(), AttachCallback(sigma=0.1))
    with pytest.raises(fm.errors.ArgumentError, match=r"returned 2 optimizers.*Call flatmin.attach"):
        fit(tmp_path, Two(), AttachCallback(sigma=0.1, module="network"))
    with pytest.raises(fm.errors.ArgumentError, match=r"training_step returned None.*Return a loss of zero"):
        fit(tmp_path, Skips(METHODS["nso"]), ProbesCallback())
    exact = Classifier(lambda base: fm.SharpnessAware(base, rho=0.1, exact=True))
    with pytest.raises(fm.errors.ArgumentError, match="SharpnessAware asks for the gradient over all data"):
        fit(tmp_path, exact, ProbesCallback())
    with pytest.raises(TypeError, match="sigmma"):
        AttachCallback(0.1, sigmma=0.2)


def test_gradients_that_stay_on_their_rank_are_refused_for_methods_that_look_into_them(tmp_path, monkeypatch):
    module, run = Classifier(METHODS["sam"]), trainer(tmp_path, ProbesCallback(), accumulate_grad_batches=2)
    monkeypatch.setattr(lightning.Trainer, "world_size", 2)
    with pytest.raises(
        fm.errors.ArgumentError, match=r"SAM looks into gradients.*accumulate_grad_batches=2.*of 2 ranks"
    ):
        run.fit(module, loader(), loader())


def test_without_the_callback_accumulation_is_refused(tmp_path):
    """A closure of Lightning's under accumulation stands for the last micro-batch alone."""
    with pytest.raises(fm.errors.ClosureError, match="Gradients had been accumulated before"):
        fit(tmp_path, Classifier(METHODS["nso"]), accumulate_grad_batches=2)

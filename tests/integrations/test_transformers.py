"""The Trainer of transformers against loops written by hand, on digits and sentences."""

import pytest
import torch

import flatmin as fm
from integrations.tasks import batches, bert, gpt2, image_examples, language_examples, steps_of, text_examples, vit
from problems import same, snapshot
from reference.draws import noise

transformers = pytest.importorskip("transformers", reason="transformers is not installed (the extra trainer)")
pytest.importorskip("accelerate", reason="accelerate is not installed, which the Trainer needs")

from flatmin.integrations.arguments import FlatMinimaArguments  # noqa: E402
from flatmin.integrations.transformers import AttachCallback, FlatMinimaTrainer  # noqa: E402

pytestmark = [
    # The loader pins memory where there is a GPU, and says so where there is none.
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
]
SETTINGS = {
    "nso": {"sigma": 0.02, "perturbation_seed": 5},
    "wpsgd": {"sigma": 0.02, "num_perturbations": 2},
    "sam": {"rho": 0.05},
    "usam": {"rho": 0.05},
    "asam": {"rho": 0.5},
    "rsam": {"rho": 0.05, "sigma": 0.01},
}
CLASSES = {"nso": fm.NSO, "wpsgd": fm.WPSGD, "sam": fm.SAM, "usam": fm.USAM, "asam": fm.ASAM, "rsam": fm.RSAM}
# To the frameworks ASAM is SAM, USAM is RSAM and WP-SGD is NSO: they differ in what the library's own tests see.
SLOW = ("asam", "usam", "wpsgd")
every_method = pytest.mark.parametrize(
    "method", [pytest.param(method, marks=[pytest.mark.slow] * (method in SLOW)) for method in SETTINGS]
)


def arguments(folder, **changes):
    """Four examples a micro-batch, two micro-batches a step, three steps of SGD, data in its order."""
    settings = {
        "output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "optim": "sgd",
        "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_steps": 3, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "train_sampling_strategy": "sequential", "save_strategy": "no",
        "logging_steps": 1, "max_grad_norm": 0.5, "dataloader_pin_memory": False,
    }  # fmt: skip
    return transformers.TrainingArguments(**{**settings, **changes})


def trainer(folder, model=None, examples=None, method="nso", *, callbacks=None, optimizers=(None, None), **changes):
    flat = None if method is None else FlatMinimaArguments(method=method, **SETTINGS[method])
    run = FlatMinimaTrainer(
        model=vit() if model is None else model,
        args=arguments(folder, **changes),
        train_dataset=image_examples() if examples is None else examples,
        eval_dataset=image_examples(12),
        callbacks=callbacks,
        optimizers=optimizers,
        flat_minima=flat,
    )
    if "Bert" in repr(model):  # whose loss is a mean, though the Trainer takes it for a sum over the items of the step
        run.loss_is_scaled_for_ga = False
    return run


def ordered(run):
    """Names of the parameters in the order of the Trainer's optimizer: with decay, then without."""
    decayed = run.get_decay_parameter_names(run.model)
    names = [n for n, _ in run.model.named_parameters()]
    return [n for n in names if n in decayed] + [n for n in names if n not in decayed]


def by_hand(model, names, steps, build, *, max_norm=0.5, autocast=False):
    """The loop that a user would write: micro-batches inside each probe, clipping, a step."""
    parameters = dict(model.named_parameters())
    optimizer = build(torch.optim.SGD([parameters[n] for n in names], lr=0.1))
    model.train()
    for micro_batches in steps:
        for probe in optimizer.probes():
            with probe:
                for batch in micro_batches:
                    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                        output = model(**batch)
                    (output.loss.float() / len(micro_batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def of_class(method):
    settings = {{"perturbation_seed": "seed"}.get(name, name): value for name, value in SETTINGS[method].items()}
    return lambda base: CLASSES[method](base, **settings)


@every_method
def test_the_trainer_is_the_loop_written_by_hand(method, tmp_path):
    run = trainer(tmp_path, method=method)
    run.train()
    model = vit()
    optimizer = by_hand(model, ordered(run), steps_of(batches(image_examples(), 4), 2, 3), of_class(method))
    assert same(snapshot(run.model), snapshot(model))
    if optimizer.trace_estimate is not None:
        told = run.state.log_history[2]["hessian_trace"]
        assert told == pytest.approx(optimizer.trace_estimate.value, rel=1e-12)  # it is a sum over two groups there


def displaced(model, names, moves):
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, move in zip(names, moves, strict=True):
            parameters[name].add_(move)


def mean_gradients(model, names, micro_batches):
    model.zero_grad()
    for batch in micro_batches:
        (model(**batch).loss / len(micro_batches)).backward()
    parameters = dict(model.named_parameters())
    return [parameters[n].grad.clone() for n in names]


def plain_steps(model, names, steps, direction, lr=0.1):
    """w <- w - lr * direction(step, w), for SGD without anything around it."""
    model.train()
    for number, micro_batches in enumerate(steps):
        found = direction(number, micro_batches)
        displaced(model, names, [-lr * g for g in found])


def test_nso_is_the_formula_of_the_paper(tmp_path):
    """[g(w + u) + g(w - u)] / 2 with the noise drawn and the weights moved by hand, on sentences."""
    run = trainer(tmp_path, bert(), text_examples(), max_grad_norm=0.0)
    run.train()
    model, names = bert(), ordered(run)
    parameters = dict(model.named_parameters())

    def direction(step, micro_batches):
        drawn = noise(fm.Gaussian(), [parameters[n] for n in names], seed=5, step=step, draw=0)
        u, home = [0.02 * d for d in drawn], snapshot(model)
        found = []
        for sign in (1, -1):
            displaced(model, names, [sign * x for x in u])
            found.append(mean_gradients(model, names, micro_batches))
            model.load_state_dict(home)
        return [(a + b) / 2 for a, b in zip(*found)]

    plain_steps(model, names, steps_of(batches(text_examples(), 4), 2, 3), direction)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], value, rtol=1e-6, atol=1e-6)


def test_sam_climbs_the_gradient_of_the_whole_step(tmp_path):
    """g(w + rho g / |g|) over both micro-batches at each point, moved by hand."""
    run = trainer(tmp_path, bert(), text_examples(), method="sam", max_grad_norm=0.0)
    run.train()
    model, names = bert(), ordered(run)

    def direction(step, micro_batches):
        home = snapshot(model)
        ascent = mean_gradients(model, names, micro_batches)
        length = torch.cat([g.flatten() for g in ascent]).norm()
        displaced(model, names, [0.05 * g / length for g in ascent])
        found = mean_gradients(model, names, micro_batches)
        model.load_state_dict(home)
        return found

    plain_steps(model, names, steps_of(batches(text_examples(), 4), 2, 3), direction)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], value, rtol=1e-6, atol=1e-6)


@every_method
def test_accumulation_equals_the_big_batch(method, tmp_path):
    results = []
    for size, parts in ((8, 1), (2, 4)):
        run = trainer(tmp_path, method=method, per_device_train_batch_size=size, gradient_accumulation_steps=parts)
        run.train()
        results.append(snapshot(run.model))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=2e-6)


def test_a_language_model_counts_the_tokens_of_the_whole_step(tmp_path):
    """Micro-batches with different numbers of tokens: the loss is the mean over the tokens of the step."""
    flat = FlatMinimaArguments(method="nso", sigma=0.02)
    settings = arguments(tmp_path, max_grad_norm=0.0)
    run = FlatMinimaTrainer(gpt2(), settings, train_dataset=language_examples(), flat_minima=flat)
    run.train()
    model, names = gpt2(), ordered(run)
    parameters = dict(model.named_parameters())
    optimizer = fm.NSO(torch.optim.SGD([parameters[n] for n in names], lr=0.1), sigma=0.02)
    model.train()
    for micro_batches in steps_of(batches(language_examples(), 4), 2, 3):
        tokens = sum((batch["labels"][:, 1:] != -100).sum() for batch in micro_batches)
        for probe in optimizer.probes():
            with probe:
                for batch in micro_batches:
                    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                    flat_logits, labels = logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
                    (torch.nn.functional.cross_entropy(flat_logits, labels, reduction="sum") / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], value, rtol=1e-6, atol=1e-6)


def test_bf16_is_autocast_around_the_model(tmp_path):
    run = trainer(tmp_path, bf16=True)
    run.train()
    model = vit()
    by_hand(model, ordered(run), steps_of(batches(image_examples(), 4), 2, 3), of_class("nso"), autocast=True)
    assert same(snapshot(run.model), snapshot(model))


@every_method
def test_a_grad_scaler_changes_nothing_but_rounding(method, tmp_path):
    """fp16 needs a GPU; what scales its losses works on a CPU too, and is what the methods have to see through."""
    results = []
    for scale in (None, 2.0**10):
        run = trainer(tmp_path, method=method)
        if scale is not None:
            run.accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
            run.accelerator.unscale_gradients = lambda run=run, scaler=scaler: scaler.unscale_(run.optimizer.optimizer)
        run.train()
        results.append(snapshot(run.model))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=2e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 in the Trainer needs a GPU")
@every_method
def test_fp16(method, tmp_path):
    results = []
    for half in (False, True):
        run = trainer(tmp_path, method=method, use_cpu=False, fp16=half)
        run.train()
        results.append(snapshot(run.model))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=0.1, atol=5e-3)


@pytest.mark.parametrize("method", ["nso", "sam", "attach"])
def test_without_a_radius_it_is_the_plain_trainer(method, tmp_path, monkeypatch):
    """Bit for bit, dropout masks included. (The SAM family computes the same gradient twice.)"""
    still = dict.fromkeys({"attach": ("sigma",)}.get(method) or SETTINGS[method].keys() & {"sigma", "rho"}, 0.0)
    monkeypatch.setitem(SETTINGS, method, still)
    results = []
    for name in (None, method):
        run = trainer(tmp_path, vit(dropout=0.3), method=name)
        run.train()
        results.append((snapshot(run.model), [entry.get("loss") for entry in run.state.log_history]))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def callback():
    return AttachCallback(sigma=0.02, seed=5)


@pytest.mark.parametrize("method", ["nso", "sam", "callback"])
def test_a_resumed_run_is_the_uninterrupted_one(method, tmp_path):
    """Bit for bit, with AdamW, dropout, a schedule of the learning rate and an evaluation on the way.

    Three micro-batches a step, so that with the callback the pair lies on both sides of the checkpoint.
    """

    def begin(**changes):
        settings = {
            "optim": "adamw_torch", "learning_rate": 0.01, "lr_scheduler_type": "linear", "max_steps": 4,
            "gradient_accumulation_steps": 3, "per_device_train_batch_size": 2, "save_strategy": "steps",
            "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "train_sampling_strategy": "random",
        }  # fmt: skip
        hooked = method == "callback"
        own = {"callbacks": [callback()]} if hooked else {}
        # Of ViT, transformers 5.24 saves weights under older names, which its Trainer does not find when it resumes.
        model = bert(dropout=0.3)
        run = trainer(tmp_path, model, text_examples(), None if hooked else method, **own, **settings, **changes)
        run.eval_dataset = text_examples(12)
        return run

    whole = begin()
    whole.train()
    resumed = begin()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert same(snapshot(whole.model), snapshot(resumed.model))
    tail = [{k: e.get(k) for k in ("loss", "eval_loss")} for e in whole.state.log_history[2:8]]
    assert tail == [{k: e.get(k) for k in ("loss", "eval_loss")} for e in resumed.state.log_history[2:8]]


def test_the_callback_is_attach_in_a_loop_written_by_hand(tmp_path):
    run = trainer(tmp_path, method=None, callbacks=[callback()])
    run.train()
    model, names = vit(), ordered(run)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD([parameters[n] for n in names], lr=0.1)
    handle = fm.attach(model, optimizer, sigma=0.02, seed=5)
    model.train()
    for micro_batches in steps_of(batches(image_examples(), 4), 2, 3):
        for batch in micro_batches:
            (model(**batch).loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    assert same(snapshot(run.model), snapshot(model))
    told = run.state.log_history[2]["hessian_trace"]
    assert told == pytest.approx(handle.trace_estimate.value, rel=1e-12)


def test_the_callback_leaves_no_hook_behind_and_begins_again(tmp_path):
    run = trainer(tmp_path, method=None, callbacks=[callback()])
    run.train()
    assert not run.model._forward_pre_hooks
    first = snapshot(run.model)
    run.train()
    assert not run.model._forward_pre_hooks
    assert not same(snapshot(run.model), first)


class Tracker(transformers.TrainerCallback):
    """Hears what the callbacks of trackers hear, which come before those that the user gives."""

    def __init__(self):
        self.heard = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.heard.append(dict(logs))


@pytest.mark.parametrize("how", ["mixin", "attach", "join"])
def test_trackers_are_told_the_live_trace(how, tmp_path, monkeypatch):
    monkeypatch.setitem(SETTINGS, "attach", {"sigma": 0.02})
    tracker, method = Tracker(), {"mixin": "nso", "attach": "attach", "join": None}[how]
    run = trainer(tmp_path, method=method, callbacks=[tracker])
    if how == "join":
        callback().join(run)
    run.train()
    losses = [logs for logs in tracker.heard if "loss" in logs]
    assert len(losses) == 3
    assert all("hessian_trace" in logs for logs in losses)
    assert "hessian_trace_stderr" in losses[1]
    assert all(
        logs["hessian_trace"] == entry["hessian_trace"] for logs, entry in zip(losses, run.state.log_history[:3])
    )


def test_evaluations_see_the_weights_and_leave_the_run_alone(tmp_path):
    runs = [trainer(tmp_path, **s) for s in ({}, {"eval_strategy": "steps", "eval_steps": 1})]
    for run in runs:
        run.train()
    assert same(snapshot(runs[0].model), snapshot(runs[1].model))
    told = [entry["eval_loss"] for entry in runs[1].state.log_history if "eval_loss" in entry][-1]
    (batch,) = batches(image_examples(12), 12)
    model = runs[0].model.eval()
    with torch.no_grad():
        assert told == pytest.approx(model(**batch).loss.item(), rel=1e-5)


class Attached(transformers.TrainerCallback):
    """Notes the module that is attached while training goes on."""

    def __init__(self, callback, modules):
        self.callback, self.modules = callback, modules

    def on_step_end(self, args, state, control, **kwargs):
        self.modules.append(self.callback.handle.model)


@pytest.mark.parametrize("method", [*(pytest.param(m, marks=pytest.mark.slow) for m in ("nso", "sam")), "callback"])
def test_a_compiled_model_trains_as_an_eager_one(method, tmp_path):
    results = []
    for compiled in (False, True):
        hooked, hook, attached = method == "callback", callback(), []
        own = {"callbacks": [hook, Attached(hook, attached)]} if hooked else {}
        changes = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if compiled else {}
        run = trainer(tmp_path, method=None if hooked else method, **own, **changes)
        run.train()
        assert all(module is run.model_wrapped for module in attached)  # so that hooks break no graph
        assert type(run.model_wrapped).__name__ == ("OptimizedModule" if compiled else "ViTForImageClassification")
        results.append(snapshot(run.model))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=2e-6)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("method", ["nso", "sam", "callback"])
def test_of_a_model_with_adapters_only_these_are_displaced(method, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    seen = []

    def record(module, arguments):
        if module.training:
            seen.append({n: p.detach().clone() for n, p in model.named_parameters()})

    model = bert()
    chosen = peft.LoraConfig(
        r=2, target_modules=["query", "value"], task_type="SEQ_CLS", modules_to_save=["classifier"]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = peft.get_peft_model(model, chosen)
    model.base_model.model.bert.register_forward_pre_hook(record)
    start = snapshot(model)
    hooked = method == "callback"
    own = {"callbacks": [callback()]} if hooked else {}
    run = trainer(tmp_path, model, text_examples(), None if hooked else method, **own)
    run.train()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any("lora" in n for n in trained)
    frozen = start.keys() - trained
    assert all(torch.equal(point[n], start[n]) for point in seen for n in frozen & point.keys())
    first = seen[1] if method == "sam" else seen[0]
    moved = {n for n in trained if not torch.equal(first[n], start[n])}
    if method == "sam":
        first = seen[2]  # both micro-batches are evaluated at the weights first
        moved = {n for n in trained if not torch.equal(first[n], start[n])}
        assert moved == {n for n in trained if "lora_A" not in n}  # whose gradient is 0 while B is
    else:
        assert moved == trained
    assert {n for n in trained if not torch.equal(snapshot(model)[n], start[n])}


def test_a_method_may_be_the_optimizer_itself(tmp_path):
    model = vit()
    optimizer = fm.NSO(torch.optim.AdamW(model.parameters(), lr=0.01), sigma={"*.bias": 0.0, "*": 0.02})
    run = trainer(tmp_path, model, method=None, optimizers=(optimizer, None))
    run.train()
    assert optimizer.param_groups[0]["perturbation_step"] == 3
    assert run.state.log_history[1]["hessian_trace_stderr"] > 0


def test_the_command_line_reads_the_arguments_beside_the_trainers(tmp_path):
    parser = transformers.HfArgumentParser((transformers.TrainingArguments, FlatMinimaArguments))
    line = ["--output_dir", str(tmp_path), "--seed", "3", "--method", "wpsgd", "--sigma", "0.01"]
    line += ["--num_perturbations", "4", "--noise", "rademacher", "--perturbation-seed", "7"]
    settings, flat = parser.parse_args_into_dataclasses(line)
    assert settings.seed == 3
    assert flat.given() == {"sigma": 0.01, "num_perturbations": 4, "noise": "rademacher", "seed": 7}
    assert isinstance(flat.around(torch.optim.SGD(vit().parameters(), lr=0.1)), fm.WPSGD)
    _, flat = parser.parse_dict({"output_dir": str(tmp_path), "method": "sam", "rho": 0.05, "local_ascent": True})
    assert flat.given() == {"rho": 0.05, "local_ascent": True}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "nsoo", "sigma": 0.1}, "method is 'nsoo', but it must be one of .*Did you mean 'nso'"),
        ({"method": "nso"}, "sigma is not given, and method 'nso' needs it. Pass sigma=0.05, or --sigma 0.05"),
        (
            {"method": "sam", "rho": 0.1, "sigma": 0.2},
            "sigma is 0.2, but method 'sam' has no such setting. It takes .*rho",
        ),
        ({"method": "sam", "rho": 0.1, "perturbation_seed": 1}, "perturbation_seed is 1, but method 'sam' has no"),
        ({"method": "nso", "sigma": -1.0}, "sigma is -1.0, but it must be finite and at least 0"),
        ({"method": "attach", "sigma": 0.1, "noise": "gauss"}, "'gauss'.*Did you mean 'gaussian'"),
    ],
)
def test_bad_arguments_are_named(given, message):
    with pytest.raises(fm.errors.ArgumentError, match=f"(?s){message}"):
        FlatMinimaArguments(**given)


def test_what_cannot_work_is_refused(tmp_path, monkeypatch):
    with pytest.raises(fm.errors.ArgumentError, match=r"method is 'attach'.*flatmin.attach"):
        FlatMinimaArguments(method="attach", sigma=0.1).around(torch.optim.SGD(vit().parameters(), lr=0.1))
    model = vit()
    optimizer = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.1)
    with pytest.raises(fm.errors.ArgumentError, match=r"two methods.*'sam', and its optimizer is a NSO. Leave out one"):
        trainer(tmp_path, model, method="sam", optimizers=(optimizer, None))
    exact = fm.SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1, exact=True)
    with pytest.raises(
        fm.errors.ArgumentError, match=r"SharpnessAware asks for the gradient over all data.*exact=False"
    ):
        trainer(tmp_path, model, method=None, optimizers=(exact, None)).train()
    with pytest.raises(TypeError, match="sigmma"):
        AttachCallback(0.1, sigmma=0.2)
    monkeypatch.setattr(FlatMinimaTrainer, "create_accelerator_and_postprocess", _deepspeed_later, raising=False)
    with pytest.raises(fm.errors.ArgumentError, match=r"DeepSpeed configuration.*Leave it out, and use Distributed"):
        trainer(tmp_path)


def _deepspeed_later(self):
    transformers.Trainer.create_accelerator_and_postprocess(self)
    self.is_deepspeed_enabled = True

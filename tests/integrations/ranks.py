"""What runs on each of two ranks (gloo, CPU): the frameworks under DistributedDataParallel against one process.

Run as ``ranks.py RANK 2 FRAMEWORK FOLDER``; a case that fails raises.
"""

import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

import flatmin as fm
from integrations.tasks import batches, digits, image_examples, network, steps_of, vit
from problems import snapshot

WORLD, FOLDER = 2, Path(sys.argv[-1])
METHODS = {
    "nso": lambda base: fm.NSO(base, sigma=0.02, seed=5),
    "sam": lambda base: fm.SAM(base, rho=0.05),
    "usam": lambda base: fm.USAM(base, rho=0.05),
}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def close(model, expected, name):
    for key, value in expected.items():
        torch.testing.assert_close(snapshot(model)[key], value, rtol=1e-4, atol=5e-6, msg=f"{name}: {key}")


def replicas_are_equal(model, name):
    for key, value in snapshot(model).items():
        both = [torch.empty_like(value) for _ in range(WORLD)]
        dist.all_gather(both, value)
        assert torch.equal(*both), f"{name}: the ranks' {key} differ"


def big_batches(model, optimizer, steps, loss):
    for micro_batches in steps:
        for probe in optimizer.probes():
            with probe:
                for batch in micro_batches:
                    (loss(model, batch) / len(micro_batches)).backward()
        optimizer.step()
        optimizer.zero_grad()


def plain_steps(model, optimizer, steps, loss):
    for micro_batches in steps:
        for batch in micro_batches:
            (loss(model, batch) / len(micro_batches)).backward()
        optimizer.step()
        optimizer.zero_grad()


def transformers_trainer(method):
    """Two micro-batches of two examples on each of two ranks, against four micro-batches in one process."""
    import transformers

    from flatmin.integrations.arguments import FlatMinimaArguments
    from flatmin.integrations.transformers import AttachCallback, FlatMinimaTrainer

    settings = {"nso": {"sigma": 0.02, "perturbation_seed": 5}, "sam": {"rho": 0.05}, "usam": {"rho": 0.05}}
    attached = method == "attach"
    run = FlatMinimaTrainer(
        vit(),
        transformers.TrainingArguments(
            str(FOLDER / "hf"), use_cpu=True, ddp_backend="gloo", report_to="none", disable_tqdm=True, optim="sgd",
            learning_rate=0.1, lr_scheduler_type="constant", max_steps=3, per_device_train_batch_size=2,
            gradient_accumulation_steps=2, train_sampling_strategy="sequential", save_strategy="no", max_grad_norm=0.0,
            dataloader_pin_memory=False,
        ),
        train_dataset=image_examples(),
        flat_minima=None if attached else FlatMinimaArguments(method=method, **settings[method]),
        callbacks=[AttachCallback(sigma=0.02, seed=5)] if attached else None,
    )  # fmt: skip
    run.train()
    assert type(run.model_wrapped).__name__ == "DistributedDataParallel"
    replicas_are_equal(run.model, method)
    decayed = run.get_decay_parameter_names(run.model)
    model = vit()
    named = dict(model.named_parameters())
    names = [n for n in named if n in decayed] + [n for n in named if n not in decayed]
    optimizer = sgd([named[n] for n in names])
    if attached:  # what the ranks see at one time is one micro-batch, at one point
        with fm.attach(model, optimizer, sigma=0.02, seed=5):
            plain_steps(model, optimizer, steps_of(batches(image_examples(), 4), 2, 3), lambda m, b: m(**b).loss)
    else:
        steps = steps_of(batches(image_examples(), 2), 4, 3)
        big_batches(model, METHODS[method](optimizer), steps, lambda model, batch: model(**batch).loss)
    close(run.model, snapshot(model), f"transformers {method}")


def accelerate_loop(method):
    """Accumulation over two micro-batches a rank; the SAM family averages each."""
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    from flatmin.integrations.accelerate import probes

    each = GradientAccumulationPlugin(num_steps=2, sync_each_batch=method != "nso")
    accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=each)
    model = network()
    model, optimizer = accelerator.prepare(model, METHODS[method](sgd(model.parameters())))
    images, classes = digits()
    parts = list(zip(images.split(4), classes.split(4), strict=True))
    for x, y in parts[dist.get_rank() :: WORLD]:
        with accelerator.accumulate(model):
            for probe in probes(accelerator, optimizer):
                with probe:
                    accelerator.backward(torch.nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
    replicas_are_equal(accelerator.unwrap_model(model), method)
    other = network()
    plain = METHODS[method](sgd(other.parameters()))
    for step in steps_of(parts, 4, 3):
        for pair in (step[:2], step[2:]):  # what the ranks see at one time; for NSO the same as all at once
            for probe in plain.probes(loss_scale=1 / 2):
                with probe:
                    for x, y in pair:
                        (torch.nn.functional.cross_entropy(other(x), y) / 4).backward()
        plain.step()
        plain.zero_grad()
    close(accelerator.unwrap_model(model), snapshot(other), f"accelerate {method}")


def lightning_trainer(method):
    """Two micro-batches a step on each rank for noise methods, one for the SAM family."""
    import lightning

    from flatmin.integrations.lightning import AttachCallback, ProbesCallback

    attached, parts = method == "attach", 1 if method in ("sam", "usam") else 2

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network()

        def training_step(self, batch, batch_idx):
            return error(self.network, batch)

        def configure_optimizers(self):
            base = sgd(self.parameters())
            return base if attached else METHODS[method](base)

    images, classes = digits()
    data = torch.utils.data.TensorDataset(images, classes)
    sampler = [batch for number, batch in enumerate(torch.arange(48).split(4)) if number % WORLD == dist.get_rank()]
    module = Module()
    lightning.Trainer(
        accelerator="cpu", devices=WORLD, strategy="ddp", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(FOLDER),
        use_distributed_sampler=False,
        accumulate_grad_batches=parts, callbacks=[AttachCallback(sigma=0.02, seed=5) if attached else ProbesCallback()],
    ).fit(module, torch.utils.data.DataLoader(data, batch_sampler=sampler))  # fmt: skip
    replicas_are_equal(module, method)
    model = network()
    optimizer = sgd(model.parameters())
    if attached:
        with fm.attach(model, optimizer, sigma=0.02, seed=5):
            steps = steps_of(list(zip(images.split(8), classes.split(8), strict=True)), 2, 3)
            plain_steps(model, optimizer, steps, error)
    else:
        micro_batches = list(zip(images.split(4), classes.split(4), strict=True))
        steps = steps_of(micro_batches, parts * WORLD, len(micro_batches) // (parts * WORLD))
        big_batches(model, METHODS[method](optimizer), steps, error)
    close(module.network, snapshot(model), f"lightning {method}")


def error(model, batch):
    x, y = batch
    return torch.nn.functional.cross_entropy(model(x), y)


def main(rank, framework):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": "1", "GROUP_RANK": "0"}
    os.environ |= {"TORCHELASTIC_RUN_ID": "here", "LOCAL_WORLD_SIZE": str(WORLD)}  # as torchrun does, for Lightning
    dist.init_process_group("gloo", init_method=f"file://{FOLDER / 'meeting'}", rank=rank, world_size=WORLD)
    case = {"transformers": transformers_trainer, "accelerate": accelerate_loop, "lightning": lightning_trainer}
    for method in METHODS if framework == "accelerate" else (*METHODS, "attach"):
        case[framework](method)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[3])

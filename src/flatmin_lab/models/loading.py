"""Weights from a disk: which network they belong to, and that network with them in it. No pickle is ever executed."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatmin.checks import choice
from flatmin_lab.data.root import required
from flatmin_lab.errors import WeightsError
from flatmin_lab.models.mlp import mlp
from flatmin_lab.models.resnet_cifar import ResNetCifar

if TYPE_CHECKING:
    from flatmin_lab.spec import RunSpec

MODELS = ("auto", "mlp", "resnet20", "resnet56", "transformer")
_SAFETENSORS, _TORCH = (".safetensors",), (".pt", ".pth", ".bin")
_WRAPPED = ("state_dict", "model_state_dict", "model")
_INSTALL = "flatmin[hf]"


@dataclass(frozen=True)
class Subject:
    """A model to be measured.

    Attributes:
        model: In evaluation mode, on the CPU.
        kind: What it is: ``mlp``, ``resnet20``, or the name of a class of transformers.
        data: The data set it goes with, if nothing else is said.
        seed: The seed of its run, if it is one of a comparison.
        tokenizer: What makes text into its inputs, if it reads text.
        notes: What a reader of its numbers must know.
    """

    model: nn.Module
    kind: str
    data: str
    seed: int = 0
    tokenizer: Any = None
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """A hash of all weights and buffers."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def load_subject(path: Path, *, kind: str = "auto", head_seed: int | None = None) -> Subject:
    """Load the model that ``path`` holds.

    Args:
        path: A file of weights (safetensors, or a state dict of torch), the folder of a finished run of ``flatmin
            compare``, or a folder of transformers (config.json and model.safetensors).
        kind: One of `MODELS`; ``auto`` finds it by the names of the weights.
        head_seed: Seed of the classification head of a transformer that has none.

    Returns:
        The model with its weights.

    Raises:
        ArgumentError: ``kind`` is unknown.
        WeightsError: Nothing is there, it cannot be read, or it does not fit.
        MissingPackageError: safetensors or transformers is needed and not installed.
    """
    choice("model", kind, MODELS)
    if path.is_dir():
        if (path / "config.json").is_file():
            return _transformer(path, head_seed)
        return _of_run(path)
    if not path.is_file():
        raise WeightsError(
            f"{path} does not exist. Name a file of weights (.safetensors, .pt), the folder of a finished run, or a "
            "folder of transformers."
        )
    weights = read_weights(path)
    found = _recognised(weights, path) if kind in ("auto", "transformer") else kind
    model = mlp(_widths(weights, path)) if found == "mlp" else ResNetCifar((int(found.removeprefix("resnet")) - 2) // 6)
    _load_strictly(model, weights, f"{path} ({found})")
    return Subject(model.eval(), found, "digits-clean" if found == "mlp" else "cifar10-jpeg75")


def folder_name(path: Path) -> str:
    """Return what a folder with results is called after weights: after the run they are of, or their file or folder."""
    path = path.resolve()
    names = path.parts[-3:] if (path / "spec.json").is_file() else (path.stem if path.is_file() else path.name,)
    return "-".join(names)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors from a file; those below float32 as float32, in which curvature is computed anyway.

    Raises:
        WeightsError: It cannot be read, or holds something else.
        MissingPackageError: It is a file of safetensors, which is not installed.
    """
    if path.suffix in _SAFETENSORS:
        safetensors = required("safetensors.torch", "safetensors", "reads such files", install=_INSTALL)
        reader, failures = safetensors.load_file, (OSError, required("safetensors", "safetensors", "").SafetensorError)
    elif path.suffix in _TORCH:
        reader = lambda p: torch.load(p, map_location="cpu", weights_only=True)  # noqa: E731
        failures = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError)
    else:
        raise WeightsError(
            f"{path} is no file of weights that is known here: {', '.join(_SAFETENSORS + _TORCH)} are. Save the state "
            "dict in one of them: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."
        )
    try:
        found: Any = reader(path)
    except failures as error:
        first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise WeightsError(
            f"{path} cannot be read ({first_line}). Likely cause: it is damaged, or holds more than tensors, which is "
            "not executed here. Save model.state_dict() alone."
        ) from error
    return _named(found, path)


def _named(found: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(found, Mapping):
        found = next((found[k] for k in _WRAPPED if isinstance(found.get(k), Mapping)), found)
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise WeightsError(f"{path} holds no state dict of named tensors. Save model.state_dict() alone.")
    wide = {k: v.float() if v.is_floating_point() and v.dtype.itemsize < 4 else v for k, v in found.items()}
    return {name.removeprefix("module.").removeprefix("_orig_mod."): tensor for name, tensor in wide.items()}


def _recognised(weights: Mapping[str, Tensor], path: Path) -> str:
    if "linear.weight" in weights and any(name.startswith("layer3.") for name in weights):
        blocks = {m[1] for name in weights if (m := re.match(r"layer1\.(\d+)\.", name))}
        return f"resnet{6 * len(blocks) + 2}"
    if all(re.fullmatch(r"\d+\.(weight|bias)", name) for name in weights):
        return "mlp"
    raise WeightsError(
        f"{path} fits no network that is known here; its first weights are {', '.join(list(weights)[:4])}. Known are "
        "CIFAR ResNets (conv1, bn1, layer1.0.conv1, ..., linear), multilayer perceptrons as nn.Sequential (0.weight, "
        "0.bias, 2.weight, ...), and folders of transformers. Any other is measured from Python: "
        "flatmin.measure(model, loss_fn, batches)."
    )


def _widths(weights: Mapping[str, Tensor], path: Path) -> list[int]:
    matrices = [weights[name] for name in sorted(weights, key=_number) if name.endswith("weight")]
    if not matrices or any(matrix.dim() != 2 for matrix in matrices):
        raise WeightsError(
            f"{path} holds no multilayer perceptron: its weights must be matrices, 0.weight, 2.weight, ..."
        )
    return [matrices[0].shape[1], *(matrix.shape[0] for matrix in matrices)]


def _number(name: str) -> int:
    head = name.partition(".")[0]
    return int(head) if head.isdigit() else 0


def _load_strictly(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    own = model.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # count steps, and weigh nothing
    problems = [f"{name} is missing" for name in own if name not in weights and name not in counters]
    problems += [f"{name} is not in the network" for name in weights if name not in own]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)} and not {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(
            f"{what}: {'; '.join(problems[:3])}{more}. Likely cause: these are weights of another network. Leave out "
            "--model to have it recognised, or measure it from Python: flatmin.measure(model, loss_fn, "
            "batches)."
        )
    model.to(next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point()))
    model.load_state_dict(weights, strict=False)


def _of_run(path: Path) -> Subject:
    """The network of a finished run of ``flatmin compare``, on the data that it was trained with."""
    from pydantic import ValidationError

    from flatmin_lab.run import network
    from flatmin_lab.spec import RunSpec
    from flatmin_lab.store import WEIGHTS
    from flatmin_lab.tasks import task

    if not (path / "spec.json").is_file() or not (path / WEIGHTS).is_file():
        runs = sorted(p.parent.relative_to(path) for p in path.glob(f"runs/**/{WEIGHTS}"))
        named = f" It holds {len(runs)} runs; name one of them: {path / runs[0]}." if runs else ""
        raise WeightsError(
            f"{path} is neither a finished run (spec.json, {WEIGHTS}) nor a folder of transformers (config.json, "
            f"model.safetensors).{named}"
        )
    try:
        spec: RunSpec = RunSpec.model_validate_json((path / "spec.json").read_bytes())
    except ValidationError as error:
        raise WeightsError(
            f"{path / 'spec.json'} cannot be read. Likely cause: it was edited, or written by another version of "
            f"flatmin. Name its {WEIGHTS} instead."
        ) from error
    model = network(spec.model_copy(update={"device": "cpu"}))
    _load_strictly(model, read_weights(path / WEIGHTS), str(path))
    return Subject(
        model.eval(),
        task(spec.task).kind,
        spec.task,
        seed=spec.seed,
        notes=(f"Trained by {spec.method}, {spec.name}.",),
    )


def _transformer(path: Path, head_seed: int | None) -> Subject:
    transformers = required("transformers", "transformers", "builds this model", install=_INSTALL)
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # what is missing is said below, once
    transformers.utils.logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(head_seed or 0)
            model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=False,  # or else transformers asks at the terminal
                use_safetensors=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise WeightsError(
            f"{path} cannot be loaded as a transformer for classification ({first_line}). It must hold config.json, "
            "model.safetensors and the files of its tokenizer, as save_pretrained writes them."
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(level)
        transformers.utils.logging.enable_progress_bar()
    kind = type(model).__name__
    fresh = sorted(info["missing_keys"])
    if fresh and head_seed is None:
        raise WeightsError(
            f"{path} lacks {', '.join(fresh)}: it was never trained to classify, and its head would be random. Measure "
            "a fine-tuned model, or say that a fresh head will do: --head-seed 0"
        )
    notes = (f"Its head ({', '.join(fresh)}) is fresh, from seed {head_seed}: nobody trained it.",) if fresh else ()
    return Subject(model.eval(), kind, "mrpc", tokenizer=tokenizer, notes=notes)

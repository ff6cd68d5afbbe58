"""Import torch and say what it is, what it can reach, and whether each device computes."""

from __future__ import annotations

import platform
import warnings
from typing import Any

from flatmin_lab.doctor.probes.speaking import in_words, say, take_output


def main() -> None:
    """Say facts of torch as a whole, then of each device."""
    take_output()
    try:
        import torch
    except BaseException as error:  # noqa: BLE001 (what is broken may raise anything)
        say(error=in_words(error), missing=isinstance(error, ModuleNotFoundError) and error.name == "torch")
        return
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        say(
            version=torch.__version__,
            file=torch.__file__,
            cuda=torch.version.cuda,
            hip=torch.version.hip,
            threads=torch.get_num_threads(),
            numpy=_numpy(torch),
            devices=count,
            architectures=torch.cuda.get_arch_list(),
            cuda_error="" if count or not torch.backends.cuda.is_built() else _cuda_error(torch),
            mps=_mps(torch),
            warnings=[str(w.message).splitlines()[0] for w in warned],
        )
    for index in range(count):
        say(**_device(torch, index))


def _numpy(torch: Any) -> str:
    """How numbers cannot pass to NumPy and back; empty if they can."""
    try:
        torch.from_numpy(torch.ones(1).numpy())
    except BaseException as error:  # noqa: BLE001 (as above)
        return in_words(error)
    return ""


def _cuda_error(torch: Any) -> str:
    try:
        torch.cuda.init()
    except BaseException as error:  # noqa: BLE001 (as above)
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ""


def _mps(torch: Any) -> str:
    """``works``, what is wrong with Apple's GPU, or nothing where there is none to be expected."""
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return ""
    if not torch.backends.mps.is_built():
        return "torch is built without it"
    if not torch.backends.mps.is_available():
        return "this version of macOS does not offer it"
    try:
        torch.ones(2, device="mps").sum().item()
    except BaseException as error:  # noqa: BLE001 (as above)
        return in_words(error)
    return "works"


def _device(torch: Any, index: int) -> dict[str, Any]:
    """Name, capability and memory of a device, and the error of a small product on it."""
    try:
        about = torch.cuda.get_device_properties(index)
        facts = {"name": about.name, "capability": [about.major, about.minor], "memory": about.total_memory}
        x = torch.ones(8, 8, device=f"cuda:{index}")
        (x @ x).sum().item()
        return {"device": index, "error": "", **facts, "free": torch.cuda.mem_get_info(index)[0]}
    except BaseException as error:  # noqa: BLE001 (as above)
        return {"device": index, "error": in_words(error)}


if __name__ == "__main__":
    main()

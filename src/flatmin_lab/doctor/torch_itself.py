"""torch: whether it can be imported, what it was built for, and whether the devices of this machine compute."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flatmin_lab.doctor.finding import Finding, note, ok, problem
from flatmin_lab.doctor.probe import ask, said

_AGAIN = "pip install --force-reinstall torch"

# Versions of CUDA for which torch 2.6 and newer have been built, each with a package index of its own.
_BUILDS = ((11, 8), (12, 4), (12, 6), (12, 8), (13, 0))

_BROKEN = (
    (r"lib(cu|nccl|nv)|CUDA", "the libraries of CUDA that came with torch are incomplete, or another one's are found."),
    (r"undefined symbol", "parts of two versions of torch lie in one place, or LD_LIBRARY_PATH names another one's."),
    (r"DLL load failed", "the Visual C++ runtime is missing, or torch was built for another Python."),
    (r"SIGILL", "this processor lacks instructions that the build of torch needs."),
    (r"cannot allocate|SIGKILL", "the machine, or the container's limit, has too little memory to load torch."),
)
_DRIVER = Path("/proc/driver/nvidia/version")


def check_torch() -> Iterator[Finding]:
    """Examine torch and the devices that it reaches."""
    answer = ask("torch_facts")
    if not answer.lines:
        yield _broken(f"torch could not be examined: a Python that imports it {answer.fault}")
        return
    facts, *devices = answer.lines
    if facts.get("missing"):
        yield problem("torch is not installed.", "flatmin was installed with --no-deps.", "pip install torch")
    elif "error" in facts:
        yield _broken(f"torch is installed, but cannot be imported: {facts['error']}")
    else:
        yield from _build(facts)
        yield from _accelerators(facts, devices)
        if answer.fault:
            yield problem(
                f"torch was imported, but the process {answer.fault} while it looked at the devices.",
                "the driver of the device is broken, or does not fit this build of torch.",
                "nvidia-smi",
            )


def _broken(found: str) -> Finding:
    cause = next((c for pattern, c in _BROKEN if re.search(pattern, found)), "its files are damaged or incomplete.")
    return problem(found, cause, _AGAIN)


def _build(facts: Mapping[str, Any]) -> Iterator[Finding]:
    built = f"CUDA {facts['cuda']}" if facts["cuda"] else f"ROCm {facts['hip']}" if facts["hip"] else "the CPU alone"
    yield ok(f"torch {facts['version']}, built for {built}, on {facts['threads']} threads ({facts['file']}).")
    if facts["numpy"]:
        yield problem(
            f"Numbers cannot pass between torch and NumPy: {facts['numpy']}",
            "NumPy is missing, or torch was built for another major version of it.",
            "pip install --upgrade torch numpy",
        )


def _accelerators(facts: Mapping[str, Any], devices: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for device in devices:
        yield _device(device, facts["architectures"])
    if not devices and not facts["hip"]:
        yield _without_cuda(facts)
    elif not devices:
        yield problem(
            f"torch is built for ROCm, but reaches no device. {facts['cuda_error']}",
            "there is no AMD GPU, its driver does not run, or your user may not use it.",
            'sudo usermod --append --groups render,video "$USER"',
        )
    if facts["mps"] == "works":
        yield ok("Apple's GPU (mps) computes.")
    elif facts["mps"]:
        yield note(
            f"Apple's GPU (mps) cannot be used: {facts['mps']}.",
            "torch or macOS is too old, or this Python was built for Intel processors.",
            "pip install --upgrade torch",
        )


def _without_cuda(facts: Mapping[str, Any]) -> Finding:
    driver, visible = _driver(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not driver:
        if not facts["cuda"]:
            return ok("No NVIDIA driver is here, and torch needs none: everything runs on the CPU.")
        return note(
            f"torch is built for CUDA {facts['cuda']}, and no NVIDIA driver is here: everything runs on the CPU.",
            "the machine has no NVIDIA GPU, its driver is not installed, or the container was not given it.",
            "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cpu",
        )
    if not facts["cuda"]:
        index = _index(driver)
        return problem(
            f"The machine has an NVIDIA driver ({_words(driver)}), but torch is built for the CPU alone.",
            "torch was installed from the index of CPU builds.",
            f"{_AGAIN} --index-url https://download.pytorch.org/whl/{index}" if index else _AGAIN,
        )
    if visible is not None and not re.match(r"\s*(\d|GPU-|MIG-)", visible):
        return note(
            f"No GPU is visible to torch: CUDA_VISIBLE_DEVICES is {visible!r}.",
            "a script or a scheduler hides them.",
            "unset CUDA_VISIBLE_DEVICES",
        )
    said_by_torch = facts["cuda_error"] or "; ".join(facts["warnings"]) or "it gives no reason"
    if _is_older(driver, facts["cuda"]):
        return problem(
            f"torch is built for CUDA {facts['cuda']}, which the driver does not offer ({_words(driver)}): "
            f"{said_by_torch}",
            "the driver is older than the build of torch.",
            f"{_AGAIN} --index-url https://download.pytorch.org/whl/{_index(driver) or 'cu118'}",
        )
    return problem(
        f"torch is built for CUDA {facts['cuda']} and a driver is here ({_words(driver)}), but no GPU answers: "
        f"{said_by_torch}",
        "the driver was updated without a restart, the machine slept, or the container was not given the GPU.",
        "sudo modprobe -r nvidia_uvm && sudo modprobe nvidia_uvm",
    )


def _device(device: Mapping[str, Any], architectures: Sequence[str]) -> Finding:
    where = f"cuda:{device['device']}"
    if "name" not in device:
        return problem(f"{where} cannot be used: {device['error']}", "the device or its driver hangs.", "nvidia-smi")
    major, minor = device["capability"]
    about = f"{where}, {device['name']}, {device['memory'] / 2**30:.0f} GiB, capability {major}.{minor}"
    if device["error"]:
        fits = runs_on(architectures, major, minor)
        return problem(
            f"{about}: a small product fails: {device['error']}",
            "another process holds its memory, or it hangs."
            if fits
            else f"this build of torch has code for {', '.join(architectures)} alone.",
            "nvidia-smi" if fits else _AGAIN + " --index-url https://download.pytorch.org/whl/cu126",
        )
    return ok(f"{about}: computes; {device.get('free', 0) / 2**30:.1f} GiB are free.")


def runs_on(architectures: Sequence[str], major: int, minor: int) -> bool:
    """Tell whether code for one of ``architectures`` runs on a device of this capability.

    Example:
        >>> runs_on(["sm_80"], 8, 6), runs_on(["sm_80"], 9, 0), runs_on(["compute_80"], 9, 0)
        (True, False, True)
    """
    for name in architectures:
        kind, _, digits = name.partition("_")
        if digits[:-1].isdigit() and digits.isdigit():
            built = int(digits[:-1]), int(digits[-1])
            if built <= (major, minor) and (kind == "compute" or built[0] == major):
                return True
    return False


def _driver() -> dict[str, str]:
    """What is known of NVIDIA's driver: its version, and the newest CUDA that it offers; empty where there is none."""
    found: dict[str, str] = {}
    if shutil.which("nvidia-smi"):
        told, _ = said("nvidia-smi")
        for key, pattern in (("version", r"Driver Version:\s*([\d.]+)"), ("cuda", r"CUDA Version:\s*([\d.]+)")):
            if match := re.search(pattern, told):
                found[key] = match[1]
    if not found and _DRIVER.exists():
        match = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", _DRIVER.read_text(errors="replace"))
        found["version"] = match[1] if match else "unknown"
    return found


def _words(driver: Mapping[str, str]) -> str:
    return f"version {driver.get('version', 'unknown')}, for CUDA up to {driver.get('cuda', 'unknown')}"


def _index(driver: Mapping[str, str]) -> str:
    """The index of the newest build of torch that the driver can run, if that is known."""
    offered = _pair(driver.get("cuda", ""))
    fitting = [build for build in _BUILDS if build <= offered]
    return f"cu{fitting[-1][0]}{fitting[-1][1]}" if fitting else ""


def _is_older(driver: Mapping[str, str], built: str) -> bool:
    # within one major version of CUDA, older drivers run newer builds
    return "cuda" in driver and _pair(driver["cuda"])[0] < _pair(built)[0]


def _pair(version: str) -> tuple[int, int]:
    major, minor = [*map(int, re.findall(r"\d+", version)), 0, 0][:2]
    return major, minor

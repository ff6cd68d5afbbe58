"""Python, flatmin itself, and every package of its extras: there or not, of a version that fits, and importable."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from flatmin_lab.doctor.finding import Finding, note, ok, problem
from flatmin_lab.doctor.probe import Answer, ask

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_TOOLS = ("dev", "docs")
"""Extras of commands for those who work on flatmin: what they hold is not imported."""

_MALICIOUS = {"lightning": ("2.6.2", "2.6.3")}
"""Releases that steal what they find. They are never imported here: that is when they act."""

_TOUCHED = {"transformers": "PreTrainedModel"}
"""Names that packages load only when they are asked for, and with them what they depend on."""

_BROKEN_BINARY = (
    "its binary was made for another build of torch (the wheels on PyPI are made for CUDA). What looks for it breaks "
    "as well, `import transformers` among others. flatmin does not need it."
)


@dataclass(frozen=True)
class _Package:
    """A requirement and what is installed of it: a version, or nothing."""

    requirement: Requirement
    version: str

    @property
    def name(self) -> str:
        return self.requirement.name

    @property
    def fits(self) -> bool:
        return bool(self.version) and self.requirement.specifier.contains(self.version, prereleases=True)

    def __str__(self) -> str:
        return f"{self.name} {self.version}" if self.version else self.name


def check_python() -> Iterator[Finding]:
    """Examine this Python and the installation of flatmin."""
    here = f"Python {platform.python_version()} ({sys.executable})"
    try:
        about = metadata.metadata("flatmin")
    except metadata.PackageNotFoundError:
        yield ok(f"{here}.")
        yield note(
            "flatmin runs from a folder and is not installed, so that its requirements cannot be looked up.",
            "PYTHONPATH names its sources.",
            "pip install --editable '.[lab]'",
        )
        return
    wanted = about["Requires-Python"]
    if wanted and not _specifier(wanted, platform.python_version()):
        yield problem(f"{here}, and flatmin needs {wanted}.", "pip was told to ignore it.", "python3.11 -m venv .venv")
    else:
        yield ok(f"{here}; flatmin {about['Version']}.")


def _specifier(wanted: str, version: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(version, prereleases=True)


def check_torchvision() -> Iterator[Finding]:
    """Examine the packages around torch that break what looks for them, where they are installed."""
    for name in ("torchvision", "torchaudio"):
        answer = ask("importing", name)
        error = _errors(answer).get(name, "")
        if error == f"ModuleNotFoundError: No module named '{name}'":
            yield ok(f"{name} is not installed, and nothing here needs it.")
        elif error:
            yield problem(
                f"{_installed(name)} is installed, but cannot be imported: {error}",
                _BROKEN_BINARY,
                f"pip uninstall --yes {name}",
            )
        else:
            yield ok(f"{_installed(name)} can be imported.")


def _installed(name: str) -> str:
    """Name and version of a package, and the torch that it says it was made for."""
    try:
        version, wanted = metadata.version(name), metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return name
    made_for = next((w.partition(";")[0].strip() for w in wanted if w.startswith("torch=")), "")
    return f"{name} {version}" + (f" (made for {made_for})" if made_for else "")


def check_extras() -> Iterator[Finding]:
    """Examine what flatmin requires, and each of its extras."""
    try:
        extras = metadata.metadata("flatmin").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return  # said by `check_python`
    wanted = {extra: list(_wanted(extra)) for extra in ("", *extras)}
    with ThreadPoolExecutor(2) as pool:  # each import is a process of its own
        answers = dict(zip(wanted, pool.map(_imported, wanted, wanted.values()), strict=True))
    for extra, packages in wanted.items():
        yield from _extra(extra, packages, answers[extra])
    yield from _malicious()


def _wanted(extra: str) -> Iterator[_Package]:
    from packaging.requirements import Requirement

    for line in metadata.requires("flatmin") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        is_own = "extra ==" in str(marker)
        if is_own != bool(extra) or (marker and not marker.evaluate({"extra": extra})):
            continue
        if requirement.name == "flatmin":  # an extra that holds others
            for other in requirement.extras:
                yield from _wanted(other)
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = ""
        yield _Package(requirement, version)


def _extra(extra: str, packages: list[_Package], answer: Answer) -> Iterator[Finding]:
    name = f"flatmin[{extra}]" if extra else "flatmin"
    install, judge = f"pip install '{name}'", problem if extra in ("", "lab") else note
    missing = [p for p in packages if not p.version]
    unfit = [p for p in packages if p.version and not p.fits]
    if missing and len(missing) == len(packages):
        yield note(f"{name} is not installed: {_list(missing)}.", "it was not asked for.", install)
    elif missing:
        yield judge(f"{name} lacks {_list(missing)}.", "it was installed in part, or uninstalled.", install)
    for package in unfit:
        yield judge(
            f"{name} needs {package.requirement.name}{package.requirement.specifier}, and {package.version} is here.",
            "another package asked for that version, or flatmin was updated alone.",
            f"pip install '{package.requirement.name}{package.requirement.specifier}'",
        )
    errors = _errors(answer)
    for module, error in errors.items():
        yield problem(
            f"{name}: {module} is installed, but cannot be imported: {error}",
            "its binaries were made for other versions of what it builds on, or its files are damaged.",
            f"pip install --force-reinstall {_distribution(module, packages)}",
        )
    if not (missing or unfit or errors):
        yield ok(f"{name}: {_list(packages)}.")


def _imported(extra: str, packages: list[_Package]) -> Answer:
    """What importing them says: those that fit alone, and no tools."""
    modules = [] if extra in _TOOLS else [module for p in packages if p.fits for module in _modules(p.name)]
    return ask("importing", *modules) if modules else Answer(())


def _modules(name: str) -> Iterator[str]:
    """What is imported of a package: the module of its name, or else the public ones that it installs."""
    wanted = name.replace("-", "_")
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        files = []
    tops = {file.parts[0] for file in files if file.parts[-1] == "__init__.py" and len(file.parts) == 2}
    public = sorted(top for top in tops if not top.startswith("_") and top not in ("tests", "docs"))
    for module in [wanted] if wanted in tops or not public else public:
        yield f"{module}:{_TOUCHED[module]}" if module in _TOUCHED else module


def _errors(answer: Answer) -> dict[str, str]:
    """The modules that could not be imported, with their errors; the one during which the process ended among them."""
    errors = {line["module"]: line["error"] for line in answer.lines if "error" in line}
    if answer.fault and answer.lines and answer.lines[-1].get("begun"):
        errors[answer.lines[-1]["module"]] = f"the process {answer.fault}"
    return errors


def _distribution(module: str, packages: Iterable[_Package]) -> str:
    return next((p.name for p in packages if module in {m.partition(":")[0] for m in _modules(p.name)}), module)


def _list(packages: Iterable[_Package]) -> str:
    return ", ".join(map(str, packages))


def _malicious() -> Iterator[Finding]:
    for name, versions in _MALICIOUS.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if version in versions:
            yield problem(
                f"{name} {version} is a malicious release.",
                "it was installed while it stood on PyPI. It acts when it is imported: if it ever was, treat every key "
                "and password that this account could read as stolen.",
                f"pip uninstall --yes {name} && pip cache remove {name}",
            )

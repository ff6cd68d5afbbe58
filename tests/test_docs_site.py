"""The pages of the site, without building them: every public name has its entry, every page its place."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import flatmin

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "flatmin"
API = sorted((DOCS / "api").glob("*.rst"))
PACKAGES = sorted(init.parent for init in SOURCE.glob("*/__init__.py") if "__all__" in init.read_text("utf-8"))
MODULES = [*sorted(SOURCE.glob("integrations/*.py")), SOURCE / "noise" / "schedules.py", SOURCE / "errors.py"]
INNER = {
    "integrations/lightning_loop.py",
    "integrations/shared.py",
    "integrations/__init__.py",
}  # of the others' making


def documented():
    """Pairs of module and name that the pages of the API list, as often as they do."""
    pairs = []
    for page in API:
        text = page.read_text("utf-8")
        for module, names in re.findall(r"^\.\. api:: (\S+)\n\n((?:   .*\n?)+)", text, flags=re.MULTILINE):
            pairs += [(module, name) for name in names.split()]
        pairs += [
            tuple(full.rsplit(".", 1)) for full in re.findall(r"^\.\. py:data:: (\S+)$", text, flags=re.MULTILINE)
        ]
    return pairs


def things():
    """What is listed, as objects: a name may be public in several places, and needs one entry."""
    return [
        None if module.startswith("flatmin.integrations") else getattr(importlib.import_module(module), name, None)
        for module, name in documented()
    ]


def is_listed(module, name):
    thing = getattr(module, name)
    if any(thing is other for other in things()):
        return True
    return (module.__name__, name) in documented()


@pytest.mark.parametrize("package", [SOURCE, *PACKAGES], ids=lambda path: path.name)
def test_every_public_name_has_an_entry(package):
    module = flatmin if package == SOURCE else importlib.import_module(f"flatmin.{package.name}")
    modules = {p.name for p in PACKAGES} | {"schedules"}
    missing = [name for name in module.__all__ if name not in modules and not is_listed(module, name)]
    assert not missing, f"add to a list of docs/api/*.rst, under `.. api:: {module.__name__}`: {' '.join(missing)}"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.stem)
def test_modules_that_are_imported_by_name_have_their_entries(file):
    if file.relative_to(SOURCE).as_posix() in INNER:
        return
    tree = ast.parse(file.read_text("utf-8"))
    public = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and not n.name.startswith("_")}
    listed = {name for module, name in documented()}
    assert public <= listed, f"add to a list of docs/api/*.rst: {' '.join(sorted(public - listed))}"


def test_what_is_listed_exists_and_is_listed_once():
    pairs = documented()
    assert len(pairs) == len(set(pairs))
    for (module, name), thing in zip(pairs, things(), strict=True):
        if module.startswith("flatmin.integrations"):  # imports its framework
            source = (SOURCE / Path(*module.split(".")[1:])).with_suffix(".py").read_text("utf-8")
            assert re.search(rf"^(class|def) {name}\b", source, flags=re.MULTILINE), f"{module}.{name}"
        else:
            assert thing is not None, f"{module} has no {name}; it is in a list of docs/api"


def navigation():
    """Pages that the navigation names, in the index or below another page, patterns resolved."""
    index = (DOCS / "index.md").read_text("utf-8")
    entries = [line for tree in re.findall(r"```\{toctree\}(.*?)```", index, flags=re.DOTALL) for line in tree.split()]
    conf = ast.parse((DOCS / "conf.py").read_text("utf-8"))
    values = {t.id: n.value for n in conf.body if isinstance(n, ast.Assign) for t in n.targets}
    children = ast.literal_eval(values["children"])
    for entry in [e for e in entries if not e.startswith(":")] + [c for found in children.values() for c in found]:
        yield from (path for suffix in (".md", ".rst") for path in DOCS.glob(entry + suffix))


def test_every_page_is_in_the_navigation():
    pages = {p for suffix in ("md", "rst") for p in DOCS.rglob(f"*.{suffix}") if "auto_gallery" not in p.parts}
    outside = pages - set(navigation()) - {DOCS / "index.md"}
    names = sorted(p.relative_to(DOCS).as_posix() for p in outside if p.parent.name != "gallery")
    assert not names, f"name them in a toctree of docs/index.md: {names}"


def test_links_lead_to_files():
    """Those of pages, and of files that pages include."""
    included = [
        ROOT / name
        for name in re.findall(r"include\} \.\./(\S+)", "".join(p.read_text("utf-8") for p in DOCS.glob("*.md")))
    ]
    for page in [*DOCS.rglob("*.md"), *included]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_the_font_has_its_licence():
    fonts = DOCS / "_static" / "fonts"
    assert "SIL OPEN FONT LICENSE" in (fonts / "OFL.txt").read_text("utf-8")
    assert [file.suffix for file in sorted(fonts.iterdir())] == [".txt", ".woff2"]


def test_pages_ask_nothing_of_the_network():
    """No script, style or font of another host: pages can be read offline and tell nobody."""
    for file in [*DOCS.glob("_static/*.css"), DOCS / "conf.py", *DOCS.glob("_extensions/*.py")]:
        assert not re.search(r"https?://", file.read_text("utf-8")), file.name


def extension(monkeypatch, name):
    """One of the extensions that build the site, which is there with Sphinx."""
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(DOCS / "_extensions")
    return importlib.import_module(name)


@pytest.mark.parametrize(
    ("written", "link"),
    [
        ("[NSO](methods/nso.md#x)", "[NSO](/methods/nso.md#x)"),
        (
            "[tables](results/reproductions/nso.theory-small)",
            "[tables](/results/reproductions/nso.theory-small/README.md)",
        ),
        ("[records](results/certificates)", "records"),  # a folder without a README
        ("[changes](../CHANGELOG.md)", "[changes](/changelog.md)"),
        ("[script](../examples/measure_and_certify.py)", "script"),
        ("[paper](https://arxiv.org/abs/2306.08553) ![figure](certificates.png)",) * 2,
        ("[gone](no-such-page.md)",) * 2,  # left to MyST, whose warning is an error
    ],
)
def test_links_lead_to_pages_of_the_site(monkeypatch, written, link):
    links = extension(monkeypatch, "links")
    assert links.follow(written, source=DOCS / "index.md", docs=DOCS) == link


def test_docstrings_mean_what_they_show_in_a_terminal(monkeypatch):
    docstrings = extension(monkeypatch, "docstrings")
    lines = [
        "The length |w| of ``|w|``, shape (*batch, d), is *not* :math:`|w|`.",
        ":param k: k.",
        ".. math:: |g|",
        "",
        "   |h|",
        "",
        ">>> 2 ** 3 | 1",
        "9",
        "",
        "**kwargs",
    ]
    docstrings.escape_text(lines)
    assert lines == [
        "The length \\|w\\| of ``|w|``, shape (\\*batch, d), is *not* :math:`|w|`.",
        ":param k: \\k.",
        ".. math:: |g|",
        "",
        "   |h|",
        "",
        ">>> 2 ** 3 | 1",
        "9",
        "",
        "\\*\\*kwargs",
    ]

"""The pages under docs do what they say: their code runs from top to bottom, and every method has its page."""

import re
from pathlib import Path

import pytest
import torch

import flatmin as fm
from methods_table import METHODS

DOCS = Path(__file__).resolve().parents[1] / "docs"
METHOD_PAGES = DOCS / "methods"
FORM = ["Minimises", "Cost of a step", "Linear in the gradients", "Settings", "Use it", "Source"]
CLASSES = {method.cls: method for method in METHODS}


def text(page):
    return page.read_text(encoding="utf-8")


def blocks(page):
    return re.findall(r"```python\n(.*?)```", text(page), flags=re.DOTALL)


def index():
    return text(METHOD_PAGES / "README.md")


def page_of(cls):
    """The page of a method: its name in kebab case, but for the baseline."""
    name = "sgd" if cls is fm.Plain else re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()
    return METHOD_PAGES / f"{name}.md"


def prelude():
    """What a page takes as given: a model, a loss, one batch, and a few."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
    x, y = torch.randn(32, 8), torch.randint(0, 4, (32,))
    batches = list(zip(x.chunk(4), y.chunk(4)))
    given = {"model": model, "criterion": torch.nn.CrossEntropyLoss(), "x": x, "y": y, "batches": batches}
    return {"torch": torch, "fm": fm, **given}


PAGES_WITH_CODE = [page for page in sorted(DOCS.rglob("*.md")) if blocks(page)]


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write a file
    with torch.random.fork_rng():
        torch.manual_seed(0)
        namespace = prelude()
        for number, block in enumerate(blocks(page)):
            exec(compile(block, f"{page.name}, block {number + 1}", "exec"), namespace)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_method_has_its_page_in_the_form_of_the_others(cls):
    page = page_of(cls)
    assert page.exists(), f"{cls.__name__} has no page {page.name}"
    assert f"= fm.{cls.__name__}(" in "\n".join(blocks(page))
    rows = dict(re.findall(r"^\| ([A-Z][^|]*?) \| (.*) \|$", text(page), flags=re.MULTILINE))
    assert list(rows) == FORM
    assert rows["Linear in the gradients"].startswith("yes" if CLASSES[cls].linear else "no")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_index_tells_of_every_method(cls):
    name, page = cls.__name__, page_of(cls).name
    row = re.search(rf"^\| `{name}` \|.*\| (yes|no) \| \[.*\]\({page}\) \|$", index(), flags=re.MULTILINE)
    assert row, f"the index has no row for {name} that links {page}"
    assert row[1] == ("yes" if CLASSES[cls].linear else "no")


def test_the_index_leads_to_every_page_beside_it():
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", index()))
    assert linked == {page.name for page in METHOD_PAGES.glob("*.md")} - {"README.md"}


def test_links_into_a_page_lead_to_one_of_its_headings():
    for page in DOCS.rglob("*.md"):
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text(page)):
            headings = re.findall(r"^#+ (.*)$", text(page.parent / target if target else page), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
            assert anchor in anchors, f"{page.name}: {target}#{anchor}"

"""The pages of this room do what they say: their code runs, each page from top to bottom."""

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[2] / "docs" / "methods"


@pytest.mark.parametrize("page", ["label-noise", "distance", "torch-own"])
def test_the_code_of_a_page_runs(page):
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), namespace)

"""The README does what it says: its code runs, in order, as a newcomer would paste it; its commands exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_code_runs_from_top_to_bottom(capsys):
    code = blocks("python")
    assert len(code) == 6
    namespace = {}
    for block in code:
        exec(compile(block, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("TraceEstimate(")
    assert printed[1].startswith("TraceEstimate(")


def test_the_first_lines_after_the_first_sentence_are_the_two_commands():
    first = README.index("```bash")
    assert README[first:].splitlines()[1].startswith("make compare")
    assert README[first:].splitlines()[2].startswith("make test")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)", "\n".join(blocks("bash")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_links_to_files_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_ci_runs_what_the_readme_says():
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")

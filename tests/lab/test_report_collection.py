"""Reports over several folders: what is read, what is left out by name, and what of it could do harm."""

import csv
import io
import json
import struct
import zlib

import pytest

import synthetic
from flatmin_lab import cli
from flatmin_lab.recipes.outcome import Table
from flatmin_lab.report.collection import prose, render_collection, write_tables
from flatmin_lab.report.markup import as_latex, as_markdown, latex_escaped
from flatmin_lab.report.stored import places, read
from flatmin_lab.reproduction import ReproductionRecord
from page_parser import Page

EVIL = "<script>alert(1)</script>"


def png(width=3, height=2):
    """A small grey picture."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def reproduction(folder, **changes):
    """Write a reproduction's folder; ``changes`` replace fields of its record."""
    folder.mkdir(parents=True)
    record = ReproductionRecord(
        name="nso.fig6",
        size="toy",
        seed=0,
        paper="arXiv:2306.08553, Figure 6",
        text="**The paper**: 0.5. **Here**: 0.48.",
        tables=(
            Table("errors", ("method", "paper", "here"), (("NSO", 0.5, 0.48),), "The paper's numbers beside ours."),
        ),
        files={"page": "README.md", "fig6 (figure)": "fig6.png"},
        seconds=1.5,
        environment={"flatmin": "0.1"},
    ).model_copy(update=changes)
    (folder / "reproduction.json").write_text(record.model_dump_json())
    (folder / "fig6.png").write_bytes(png())
    return folder


def comparison(folder, surfaces=0, **options):
    """Write a comparison whose runs were not kept, with few figures."""
    folder.mkdir(parents=True)
    whole = synthetic.comparison(**options)
    bare = [r.model_copy(update={"history": ()}) for r in whole.results]
    small = whole.model_copy(update={"results": tuple(bare), "surfaces": whole.surfaces[:surfaces]})
    (folder / "comparison.json").write_text(small.model_dump_json())
    return folder


@pytest.fixture
def several(tmp_path):
    reproduction(tmp_path / "results" / "nso.fig6-toy")
    comparison(tmp_path / "results" / "cmp", tasks=("digits-clean",), methods=("sgd", "nso"))
    return tmp_path / "results"


def test_papers_numbers_beside_ours_on_one_page(several, capsys):
    assert cli.main(["report", str(several)]) == 0
    assert "errors" not in capsys.readouterr().err
    html = (several / "report.html").read_text()
    found = Page(html)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert all(url.startswith(("#", "data:")) for url in found.loaded)
    assert {url[1:] for url in found.loaded if url.startswith("#")} <= set(found.ids)
    assert "<td>0.5</td><td>0.48</td>" in html
    assert "<strong>The paper</strong>" in html
    assert 'width="2" height="1"' in html  # 150 dots an inch on a screen of 96
    rows = list(csv.DictReader(io.StringIO((several / "tables.csv").read_text())))
    assert {"errors", "digits-clean-results", "digits-clean-trace-differences"} <= {row["table"] for row in rows}
    assert [r["value"] for r in rows if r["table"] == "errors"] == ["NSO", "0.5", "0.48"]
    assert r"\toprule" in (several / "tables.tex").read_text()
    assert "| NSO | 0.5 | 0.48 |" in (several / "tables.md").read_text()


def test_the_same_twice_is_the_same(several):
    first = render_collection(read([several]))
    assert render_collection(read([several, several / "cmp"])) == first


def test_json_alone(several, tmp_path, capsys):
    assert cli.main(["report", str(several), "--json", "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in found["reproductions"].values()] == ["nso.fig6"]
    assert found["files"]["report"] == str(tmp_path / "out" / "report.html")
    assert not (several / "report.html").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "reproduction.json").write_text('{"name": '), "reproduction.json cannot be read"),
        (lambda f: (f / "reproduction.json").write_text("{}"), "reproduction.json cannot be read"),
        (lambda f: (f / "fig6.png").unlink(), "fig6.png"),
        (lambda f: (f / "fig6.png").write_bytes(b"<svg onload=alert(1)>"), "fig6.png is not a PNG"),
        (lambda f: (f / "reproduction.json").rename(f / "recipe.json"), "begun and not finished"),
    ],
    ids=["half a record", "an empty record", "no figure", "no picture", "not finished"],
)
def test_what_is_damaged_is_named_and_left_out(several, damage, said, capsys):
    broken = reproduction(several / "broken")
    damage(broken)
    assert cli.main(["report", str(several)]) == cli.BAD_INPUT
    errors = capsys.readouterr().err
    assert errors.startswith("flatmin: 1 left out of the report.")
    assert str(broken) in errors
    assert said in errors
    html = (several / "report.html").read_text()
    assert "Left out: " in html
    assert "2 reproductions" not in html


def test_nothing_at_all_writes_nothing(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert (
        cli.main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")]) == cli.BAD_INPUT
    )
    assert capsys.readouterr().err.count("there is no comparison and no reproduction in it") == 2
    assert not (tmp_path / "out").exists()


def test_files_outside_the_folder_are_not_shown(tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    reproduction(tmp_path / "r", files={"x (figure)": "../secret.png"})
    (said,) = read([tmp_path / "r"]).skipped
    assert "'../secret.png', which is not a file of this folder" in said


def test_runs_within_a_reproduction_are_not_reported_twice(tmp_path):
    reproduction(tmp_path / "r")
    comparison(tmp_path / "r" / "sweep")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list(places(tmp_path)) == [tmp_path / "r"]


def test_what_came_from_outside_is_escaped(tmp_path):
    table = Table(EVIL, (EVIL, '"><img src=x>'), ((EVIL, "&"),), EVIL)
    text = f"{EVIL}\n\n[a](javascript:alert(1)) ![p](http://x/y.png) [b](https://arxiv.org)\n\n# {EVIL}"
    reproduction(
        tmp_path / EVIL.replace("/", "_"), name=EVIL, paper=EVIL, text=text, tables=(table,), environment={EVIL: EVIL}
    )
    comparison(tmp_path / '"><img src=x onerror=1>', surfaces=1, tasks=(EVIL,), methods=("sgd", '"><b id=x>'), seeds=2)
    html = render_collection(read([tmp_path]))
    found = Page(html)
    assert found.open == []
    assert found.scripts == 1
    assert "x" not in found.loaded
    assert "x" not in found.ids
    assert [url for url in found.loaded if not url.startswith(("#", "data:"))] == ["https://arxiv.org"]
    assert html.count("<script") == 1


def test_prose_is_paragraphs_and_emphasis_alone():
    assert (
        prose("a **b** `c` *d* <i>e</i>")
        == "<p>a <strong>b</strong> <code>c</code> <em>d</em> &lt;i&gt;e&lt;/i&gt;</p>\n"
    )
    assert "<h1" not in prose("# a\n\nb\n===")
    assert "<img" not in prose("![a](https://b/c.png)")


def test_latex_prints_what_stands_there():
    assert latex_escaped(r"50 % of a_b & {c} #1 $x$ ~ ^ \d") == (
        r"50 \% of a\_b \& \{c\} \#1 \$x\$ \textasciitilde{} \textasciicircum{} \textbackslash{}d"
    )
    source = as_latex([Table("a b", ("x",), (("[1]",), (2.5,)), "")])
    assert r"{[}1] \\" in source  # after a line break a bare bracket would be taken for its argument
    assert r"\label{tab:a-b}" in source


def test_markdown_cells_cannot_end_themselves():
    (line,) = [
        row for row in as_markdown([Table("t", ("x",), ((f"a|b {EVIL} *c*\nd",),), "")]).splitlines() if "b" in row
    ]
    assert line == r"| a\|b &lt;script&gt;alert(1)&lt;/script&gt; \*c\* d |"


def test_tables_of_everything_are_written_whole(tmp_path):
    files = write_tables({"here": [Table("t", ("a", "b"), ((1, "x"),), "c")]}, tmp_path)
    assert {path.name for path in files.values()} == {"tables.md", "tables.tex", "tables.csv"}
    assert (tmp_path / "tables.csv").read_text().splitlines()[1:] == ["here,t,0,1,a,1", "here,t,0,1,b,x"]

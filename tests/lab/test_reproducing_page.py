"""docs/reproducing.md is what its script makes of the stored results, which are whole."""

import csv
from pathlib import Path

import pytest

from flatmin_lab.recipes.outcome import written
from flatmin_lab.recipes.reproductions import REPRODUCTIONS
from flatmin_lab.reproduction import RECORD, ReproductionRecord
from page_scripts import page_script

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLDERS = sorted((DOCS / "results" / "reproductions").iterdir())


def shown(cell):
    """What a cell of a CSV file is on the page."""
    try:
        return written(float(cell)) if cell else ""
    except ValueError:
        return cell


def test_the_page_is_made_of_the_stored_results():
    script = page_script("reproducing")
    assert (DOCS / "reproducing.md").read_text() == script.page()


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_a_stored_result_is_whole(folder):
    record = ReproductionRecord.model_validate_json((folder / RECORD).read_bytes())
    assert record.name in REPRODUCTIONS
    assert folder.name.startswith(f"{record.name}-{record.size}")
    assert all((folder / file).is_file() for file in record.files.values())
    for table in record.tables:
        head, *rows = csv.reader((folder / f"{table.name}.csv").read_text().splitlines())
        assert tuple(head) == tuple(table.columns)
        assert [[written(c) for c in row] for row in table.rows] == [[shown(c) for c in row] for row in rows]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 600_000

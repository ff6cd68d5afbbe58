"""What the commands print when they are done: a table and where the report is, or JSON alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from flatmin_lab.certificate_record import CertificateRecord, CertificateSweep
    from flatmin_lab.landscapes.record import Landscape
    from flatmin_lab.measure import Sheet
    from flatmin_lab.report.stored import Stored
    from flatmin_lab.spec import Comparison
    from flatmin_lab.store import Store


def present(comparison: Comparison, store: Store, *, as_json: bool) -> None:
    """Show a comparison."""
    from flatmin_lab.compare import publish
    from flatmin_lab.report.collection import write_tables
    from flatmin_lab.report.plain import comparison_tables
    from flatmin_lab.report.table import console_table, summary_frame

    files = publish(comparison, store) | write_tables({store.folder.name: comparison_tables(comparison)}, store.folder)
    files["summary"] = store.write("summary.csv", summary_frame(comparison).to_csv(index=False))
    _show(_summary(comparison), console_table(comparison), files, as_json=as_json)


def present_collection(stored: Stored, out: Path, *, as_json: bool) -> None:
    """Show reproductions and comparisons together, and write their page and tables into ``out``."""
    from rich.console import Console
    from rich.text import Text

    from flatmin_lab.report.collection import collection_tables, publish_collection
    from flatmin_lab.report.table import rich_table

    files = publish_collection(stored, out)
    if as_json:
        everything = {
            "reproductions": {str(place): r.record.model_dump(mode="json") for place, r in stored.reproductions},
            "comparisons": {str(place): _summary(comparison) for place, comparison in stored.comparisons},
            "skipped": stored.skipped,
            "files": {name: str(path) for name, path in files.items()},
        }
        print(json.dumps(everything, indent=2, allow_nan=False))  # noqa: T201  (the result)
        return
    console = Console()
    for place, tables in collection_tables(stored).items():
        console.print(Text(f"\n{place}", style="bold"))
        for table in tables:
            console.print(Text(f"\n{table.caption}\n", style="dim"))
            console.print(rich_table(table, console.width))
    console.print(f"Report: {files['report']}", highlight=False, soft_wrap=True)


def present_sheet(sheet: Sheet, folder: Path, *, as_json: bool) -> None:
    """Show a measurement."""
    from flatmin_lab.report.measured import publish_sheet, sheet_table

    files = publish_sheet(sheet, folder)
    _show(sheet.to_dict(), sheet_table(sheet), files, as_json=as_json)


def present_landscape(found: Landscape, folder: Path, *, as_json: bool) -> None:
    """Show lines or planes."""
    from flatmin_lab.report.landscapes import landscape_table, publish_landscape

    files = publish_landscape(found, folder)
    _show(found.model_dump(mode="json"), landscape_table(found), files, as_json=as_json)


def present_certificate(record: CertificateRecord, *, as_json: bool) -> None:
    """Show a certificate beside what it is compared with."""
    from rich.console import Console
    from rich.table import Table

    if as_json:
        print(record.model_dump_json(indent=2))  # noqa: T201  (the result)
        return
    table = Table(title=f"{record.what}, seed {record.seed}")
    table.add_column("what")
    table.add_column("error", justify="right")
    for name, value in certificate_rows(record):
        table.add_row(name, value)
    console = Console()
    console.print(table)
    for sentence in (record.paragraph, *record.remarks):
        console.print(sentence, highlight=False)


def certificate_rows(record: CertificateRecord) -> list[tuple[str, str]]:
    """Return the rows of a certificate's table: names and numbers."""
    level = f"{min(100 * record.confidence, 99.99):g} %"  # never all, however small delta is
    rows = [
        (f"certified, networks drawn from the posterior ({record.bound}, {level})", _told(record.risk)),
        (f"certified, one network drawn ({level})", _told(record.single_draw)),
        ("on the examples, networks drawn", f"{record.empirical_risk:.4f}"),
        ("on the examples, networks drawn: upper end", _told(record.monte_carlo_upper)),
        ("on test data, networks drawn (no certificate)", f"{record.stochastic_test_error:.4f}"),
        ("on test data, the weights themselves (no certificate)", f"{record.test_error:.4f}"),
        (f"certified, clamped cross-entropy scaled to [0, 1] ({level})", _told(record.cross_entropy)),
        (f"hold-out bound of {record.hold_out_of}, for comparison ({level})", _told(record.hold_out)),
    ]
    others = [item for item in record.other_bounds.items() if item[0] != record.bound]
    return rows + [(f"inequality {name} instead", _told(value)) for name, value in others]


def _told(bound: float) -> str:
    from flatmin.bounds.certificate import rounded_up

    return "vacuous" if bound >= 0.995 else rounded_up(bound, decimals=4)


def present_sweep(sweep: CertificateSweep, folder: Path, *, as_json: bool) -> None:
    """Show certificates at several σ, and draw them."""
    from rich.console import Console

    from flatmin_lab.report.certified import certified_figure, certified_table

    path = folder / "certified-risk.png"
    certified_figure([sweep]).savefig(path, dpi=150)
    if as_json:
        print(sweep.model_dump_json(indent=2))  # noqa: T201  (the result)
        return
    console = Console()
    console.print(certified_table(sweep))
    console.print(f"Figure: {path}", highlight=False, soft_wrap=True)


def _show(everything: dict[str, Any], table: RenderableType, files: dict[str, Path], *, as_json: bool) -> None:
    """Print strict JSON alone, in which what is not known is null; or a table and where the report is."""
    from rich.console import Console

    if as_json:
        told = everything | {"files": {name: str(path) for name, path in files.items()}}
        print(json.dumps(told, indent=2, allow_nan=False))  # noqa: T201  (the result)
        return
    console = Console()
    console.print(table)
    console.print(f"Report: {files['report']}", highlight=False, soft_wrap=True)


def _summary(comparison: Comparison) -> dict[str, Any]:
    from flatmin_lab.report.table import summary_frame

    everything: dict[str, Any] = comparison.model_dump(mode="json", include={"spec", "selections", "environment"})
    everything["summary"] = json.loads(summary_frame(comparison).to_json(orient="records") or "[]")
    return everything

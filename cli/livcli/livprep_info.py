"""`livprep info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from livcli.options import output_options, store_option


@click.command(epilog="Example: livprep info --json", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("case", required=False)
@store_option
@output_options
def info(case: str | None, store: Path, as_json: bool, quiet: bool) -> None:
    """Show what is in the store, or all that is known of one case."""
    from livprep.store import open_store

    opened = open_store(store)
    chosen = [opened.case(case)] if case else list(opened.values())
    records = [describe(entry) for entry in chosen]
    if as_json:
        for record in records:
            click.echo(json.dumps(record))
    elif case:
        for key, value in records[0].items():
            click.echo(f"{key:<14} {json.dumps(value) if not isinstance(value, str) else value}")
    else:
        _table(records, store)


def describe(case: Any) -> dict[str, Any]:
    """The record of commands.md for one case."""
    meta = case.meta
    return {
        "case": case.case_id,
        "dataset": case.dataset,
        "patient": case.patient,
        "shape_zyx": list(case.shape_zyx),
        "spacing_mm": list(case.geometry.spacing_mm),
        "orientation": case.geometry.orientation,
        "hu_min": meta.hu_min,
        "hu_max": meta.hu_max,
        "label_voxels": meta.label_voxels,
        "windows": [{"name": w.name, "wl": w.wl, "ww": w.ww} for w in case.window_metas],
        "fingerprint": meta.fingerprint,
        "bytes": case.bytes_on_disk(),
        "repairs": meta.repairs,
        "warnings": meta.warnings,
        "hu_sanity": None if meta.hu_sanity is None else meta.hu_sanity.model_dump(mode="json"),
    }


def _table(records: list[dict[str, Any]], store: Path) -> None:
    """Plain columns as wide as their content: nothing is cut off in a narrow terminal or a log."""
    rows = [("case", "patient", "zyx", "mm", "HU", "liver", "tumor", "MB", "notes", "windows")]
    for record in records:
        labels = record["label_voxels"] or {}
        rows.append(
            (
                record["case"],
                record["patient"],
                "×".join(str(n) for n in record["shape_zyx"]),
                "×".join(f"{mm:g}" for mm in record["spacing_mm"]),
                f"{record['hu_min']}…{record['hu_max']}",
                str(labels.get("liver", "–")),
                str(labels.get("tumor", "–")),
                f"{record['bytes'] / 1e6:.1f}",
                str(len(record["warnings"])),
                " ".join(entry["name"] for entry in record["windows"]) or "–",
            )
        )
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    click.echo(f"{len(records)} case(s) in {store}")

"""`livprep inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from livcli.options import advise, output_options


@click.command(epilog="Example: livprep inspect scans/", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("sources", nargs=-1, required=True, metavar="SRC...", type=click.Path(path_type=Path))
@output_options
def inspect(sources: tuple[Path, ...], as_json: bool, quiet: bool) -> int:
    """Look at any DICOM folder, zip, file or NIfTI: what each series or volume is, or why it is refused."""
    from livprep.inspection import inspect_sources

    codes = set()
    for record in inspect_sources(sources):
        codes |= {record["code"]} if record["status"] == "rejected" else set()
        click.echo(json.dumps(record) if as_json else _line(record))
    advise(quiet or as_json, codes)
    return 3 if codes else 0


def _line(record: dict[str, Any]) -> str:
    if record["status"] != "ok":
        return f"{record['path']}  {record['status']}  {': '.join(filter(None, (record['code'], record['detail'])))}"
    shape = "×".join(str(n) for n in record["shape_zyx"])
    spacing = "×".join(f"{mm:g}" for mm in record["spacing_mm"])
    notes = f"  {' '.join(record['warnings'])}" if record["warnings"] else ""
    return (
        f"{record['path']}  {record['kind']} {shape} voxels, {spacing} mm (zyx), {record['orientation']}, "
        f"HU {record['hu_min']}…{record['hu_max']}{notes}"
    )

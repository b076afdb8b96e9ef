"""`livprep report`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from livcli.options import output_options, say, store_option


@click.command(
    epilog="Example: livprep report -o report.html", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="HTML file, or a folder for report.html."
)
@click.option("--window", help="Window of the pictures: a stored channel, a preset, or LEVEL/WIDTH. Default: 50/400.")
@click.option("--cases", "pattern", default="*", show_default=True, help="Only case ids that fit this pattern.")
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes; as many as there are cores.")
@store_option
@output_options
def report(
    output: Path, window: str | None, pattern: str, workers: int | None, store: Path, as_json: bool, quiet: bool
) -> None:
    """Write the whole store on one page: sizes, HU, volumes, lesions, warnings, duplicates, outliers, pictures."""
    from fnmatch import fnmatchcase

    from livcli.progress import counted
    from livprep.catalog import load_catalog
    from livprep.errors import StoreError
    from livprep.machine import cores, free_memory_bytes
    from livprep.reporting import collect, write_report
    from livprep.store import open_store

    opened = open_store(store)
    chosen = [case for case in opened if fnmatchcase(case, pattern)]
    if not chosen:
        raise StoreError("STORE_EMPTY", f"{store}: holds no case that fits {pattern!r}")
    fitting = max(1, int(free_memory_bytes() * 0.8 // (1 << 30)))
    count = workers or min(cores(), len(chosen), fitting)
    facts = list(counted(collect(opened, chosen, window, count), len(chosen), "look", quiet=quiet))
    windows = [w for w in opened[chosen[0]].windows if w.is_local] or list(load_catalog().windows.default_bank())
    path = write_report(output, opened, facts, windows)
    if as_json:
        click.echo(json.dumps({"output": str(path), "cases": len(facts), "bytes": path.stat().st_size}))
        return
    say(quiet, f"report: {path} ({path.stat().st_size / 1e6:.1f} MB, {len(facts)} cases)")

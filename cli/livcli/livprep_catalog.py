"""`livprep catalog` and `livprep explain`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from livcli.options import output_options


@click.command(epilog="Example: livprep catalog --json", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--catalog",
    "path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A catalogue file to check instead of the built-in one.",
)
@output_options
def catalog(path: Path | None, as_json: bool, quiet: bool) -> None:
    """Show and check the catalogue: cases, windows, digest."""
    import json

    from livprep.catalog import load_catalog

    facts = load_catalog(path)
    if as_json:
        click.echo(json.dumps(facts.as_dict()))
        return
    click.echo(f"digest   {facts.digest}")
    click.echo(f"3DIRCADb {len(facts.ircadb.cases)} patients")
    click.echo(
        f"LiTS     {facts.lits.train.first}-{facts.lits.train.last} training, "
        f"{len(facts.lits.repairs)} headers to repair"
    )
    if facts.own:
        click.echo(f"own      {len(facts.own)} case(s)")
    default = {window.name for window in facts.windows.default_bank()}
    for name, window in facts.windows.presets.items():
        mark = "default" if window.name in default else ""
        click.echo(f"window   {name:<20} WL {window.center_hu:g} WW {window.width_hu:g}  {mark}".rstrip())


@click.command(epilog="Example: livprep explain MASK_MISSING", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("code", required=False)
@output_options
def explain(code: str | None, as_json: bool, quiet: bool) -> None:
    """Say what CODE means and what to do; without CODE, list all."""
    from livprep.errors import CODES, UsageError

    if code is not None and code.upper() not in CODES:
        raise UsageError("USAGE", f"{code}: no such code; `livprep explain` lists all")
    if as_json:
        for name in CODES if code is None else [code.upper()]:
            click.echo(json.dumps({"code": name, **asdict(CODES[name])}))
        return
    if code is None:
        for name, entry in CODES.items():
            click.echo(f"{name:<22} exit {entry.exit_code:<3} {entry.meaning}")
        return
    entry = CODES[code.upper()]
    click.echo(f"{code.upper()} (exit {entry.exit_code})\n{entry.meaning}\n{entry.remedy}")

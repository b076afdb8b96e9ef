"""`livprep phantom`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from livcli.options import output_options


@click.command(
    epilog="Example: livprep phantom demo --dataset both --cases 12",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--dataset",
    type=click.Choice(["ircadb", "lits", "decathlon", "both"]),
    default="ircadb",
    show_default=True,
    help="Whose layout and quirks.",
)
@click.option("--cases", default=3, show_default=True, type=click.IntRange(min=1), help="Number of patients.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Same seed, same bytes.")
@click.option("--size", default=128, show_default=True, type=click.IntRange(32, 512), help="Pixels a side of a slice.")
@output_options
def phantom(dest: Path, dataset: Any, cases: int, seed: int, size: int, as_json: bool, quiet: bool) -> None:
    """Write synthetic patients to DEST in the exact layout and with the quirks of a data set.

    DEST gets a catalog.yaml of its own, which `livprep ingest DEST` picks up.
    """
    import json

    from livprep.synthesis import write_phantoms

    ids = write_phantoms(dest, dataset, cases=cases, seed=seed, size=size)
    click.echo(json.dumps({"dest": str(dest), "cases": ids}) if as_json else f"{dest}: {' '.join(ids)}")

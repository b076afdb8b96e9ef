"""`livprep remove` and `livprep gc`."""

from __future__ import annotations

from pathlib import Path

import click

from livcli.options import store_option


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("case")
@store_option
def remove(case: str, store: Path) -> None:
    """Remove CASE and its channels from the store."""
    from livprep.store import open_store, remove_case

    open_store(store).case(case)
    remove_case(store, case)
    click.echo(f"{case} removed")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@store_option
def gc(store: Path) -> None:
    """Delete what killed runs left in the staging folder; run it while no ingest runs."""
    from livprep.store import open_store, remove_staging

    open_store(store)
    names = remove_staging(store)
    click.echo(f"{len(names)} staged folder(s) deleted")

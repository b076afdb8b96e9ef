"""`livprep remove`, `livprep migrate` and `livprep gc`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from livcli.options import output_options, store_option


@click.command(epilog="Example: livprep remove lits-028", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("case")
@store_option
@output_options
def remove(case: str, store: Path, as_json: bool, quiet: bool) -> None:
    """Remove CASE and its channels from the store."""
    from livprep.store import case_folders, open_store, remove_case

    opened = open_store(store)
    if case not in case_folders(opened):
        opened.case(case)  # says that there is none
    remove_case(store, case)
    if as_json:
        click.echo(json.dumps({"case": case, "status": "removed"}))
    elif not quiet:
        click.echo(f"{case} removed")


@click.command(epilog="Example: livprep migrate", context_settings={"help_option_names": ["-h", "--help"]})
@store_option
@output_options
def migrate(store: Path, as_json: bool, quiet: bool) -> int:
    """Bring a store that an older livprep wrote to the current version, case by case; run it again if it was stopped.

    Older stores can be read without it. A store of a newer version is refused.
    """
    from livcli.progress import report
    from livprep.schema import SCHEMA_VERSION
    from livprep.store import migrate_store, open_store, version_of

    version, cases = version_of(store), len(open_store(store))
    receipts = list(migrate_store(store))
    if version == SCHEMA_VERSION and all(receipt.status == "unchanged" for receipt in receipts) and not as_json:
        click.echo(f"nothing to do: {cases} case(s) of version {SCHEMA_VERSION} in {store}")
        return 0
    return report(iter(receipts), cases, "migrate", as_json=as_json, quiet=quiet)


@click.command(epilog="Example: livprep gc", context_settings={"help_option_names": ["-h", "--help"]})
@store_option
@output_options
def gc(store: Path, as_json: bool, quiet: bool) -> None:
    """Delete what killed runs left in the staging folder; run it while no ingest runs.

    In an object storage nothing is staged: what a killed run left there is written over by the next one, or goes
    with `livprep remove CASE`.
    """
    from livprep.store import open_store, remove_staging

    open_store(store)
    names = remove_staging(store)
    if as_json:
        click.echo(json.dumps({"deleted": list(names)}))
    elif not quiet:
        click.echo(f"{len(names)} staged folder(s) deleted")

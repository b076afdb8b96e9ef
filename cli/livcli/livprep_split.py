"""`livprep split`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from livcli.options import output_options, store_option


@click.command(
    epilog="Example: livprep split --val 0.2 --test 0.2 --seed 0",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@store_option
@click.option("--name", default="default", show_default=True, help="Name under which the split is recorded.")
@click.option(
    "--val",
    default=0.2,
    show_default=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the patients for validation.",
)
@click.option(
    "--test",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the patients for test.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the shuffle.")
@output_options
def split(store: Path, name: str, val: float, test: float, seed: int, as_json: bool, quiet: bool) -> None:
    """Divide the cases into train, validation and test, by patient, and record it in the store."""
    from livprep.splits import make_split
    from livprep.store import open_store

    opened = open_store(store)
    patients = {case_id: case.patient for case_id, case in opened.items() if case.has_labels}
    made = make_split(patients, name=name, val_fraction=val, test=test, seed=seed)
    opened.write_split(made)
    if as_json:
        click.echo(json.dumps(made.model_dump(mode="json")))
        return
    for side, cases in (("train", made.train), ("val", made.val), ("test", made.test)):
        click.echo(f"{side:<6} {len(cases):>3}  {' '.join(cases)}")

"""`livprep split` and `livprep overlaps`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from livcli.options import output_options, store_option


class HeldOut(click.ParamType[Any]):
    """`ircadb`, or a share of the patients."""

    name = "ircadb|F"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse into `ircadb` or a float."""
        if value == "ircadb" or isinstance(value, float):
            return value
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not 0 <= share < 1:
            self.fail(f"{value!r} is neither ircadb nor a share from 0 up to below 1", param, ctx)
        return share


@click.command(
    epilog="Example: livprep split --test ircadb --val 0.2 --seed 0",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@store_option
@click.option("--name", default="default", show_default=True, help="Name under which the split is recorded.")
@click.option(
    "--val",
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the patients for validation.  [default: 0.2]",
)
@click.option(
    "--test",
    type=HeldOut(),
    help="Share of the patients for test; or ircadb: all 3DIRCADb patients, also as LiTS 28-47.  [default: 0]",
)
@click.option("--folds", type=click.IntRange(min=2), help="Record this many splits NAME-fold0, NAME-fold1, ...")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the draw.")
@click.option(
    "--from",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Record the train, val and test lists of this JSON file, if no patient is on two sides.",
)
@output_options
def split(
    store: Path,
    val: float | None,
    test: float | str | None,
    folds: int | None,
    file: Path | None,
    as_json: bool,
    quiet: bool,
    **choices: Any,
) -> None:
    """Divide the cases into train, validation and test, and record it in the store.

    Cases of one patient stay together, also the same scan under two names. Patients are drawn evenly over their
    tumor burden. Cases without labels are not used.
    """
    from livprep.division import SplitRequest, divide

    if file is not None and (val, test, folds) != (None, None, None):
        raise click.UsageError("--from stands alone: the file says which case is on which side")
    if folds is not None and val is not None:
        raise click.UsageError("--folds and --val exclude each other: each fold validates once")
    val, test = 0.2 if val is None else val, 0.0 if test is None else test
    for made in divide(SplitRequest(store, val=val, test=test, folds=folds, file=file, **choices)):
        if as_json:
            click.echo(json.dumps(made.model_dump(mode="json")))
            continue
        click.echo(made.name)
        for side, cases in (("train", made.train), ("val", made.val), ("test", made.test)):
            click.echo(f"  {side:<6} {len(cases):>3}  {' '.join(cases)}")
        for case in sorted(set(made.reasons) - set(made.case_ids)):
            click.echo(f"  {case}: {made.reasons[case]}")


@click.command(epilog="Example: livprep overlaps --json", context_settings={"help_option_names": ["-h", "--help"]})
@store_option
@output_options
def overlaps(store: Path, as_json: bool, quiet: bool) -> None:
    """Name pairs of cases that are the same scan, and pairs that only the catalogue calls one patient."""
    from dataclasses import asdict

    from livprep.division import store_overlaps
    from livprep.store import open_store

    for pair in store_overlaps(open_store(store)):
        click.echo(json.dumps(asdict(pair)) if as_json else f"{pair.a} = {pair.b}  {pair.evidence}")

"""`livtrain evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livcli.options import output_options, say, store_option

if TYPE_CHECKING:
    from livtrain.evaluate import Evaluation

_COLUMNS = ("dice", "assd", "hd95", "surface_dice")


@click.command(
    epilog="Example: livtrain evaluate -p predictions -r segmentations --json",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "-p",
    "--predictions",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="Folder of predicted label NIfTIs, or one file.",
)
@click.option(
    "-r",
    "--references",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    help="Label NIfTIs, or raw data set folders; repeatable. Without it, the store's labels on the store's grid.",
)
@store_option
@click.option(
    "--spacing",
    type=click.Choice(["header", "catalog"]),
    default="header",
    show_default=True,
    help="Measure with the reference header's spacing, as the challenge does, or with the repaired one.",
)
@click.option(
    "--catalog",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Catalogue to use instead of the built-in one.",
)
@output_options
def evaluate(
    predictions: Path,
    references: tuple[Path, ...],
    store: Path,
    spacing: Any,
    catalog: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score predictions as the LiTS challenge and nnU-Net do; files are paired by case.

    With --json, one object with `cases`, `lits` (the challenge's names) and `nnunet`; undefined numbers are null.
    """
    from livprep.catalog import load_catalog
    from livprep.sources import catalog_beside
    from livtrain.evaluate import evaluate_folder

    evaluation = evaluate_folder(
        predictions,
        references,
        store,
        catalog=load_catalog(catalog or catalog_beside(references)),
        spacing=spacing,
        progress=lambda case: say(quiet, f"{case.case}: liver Dice {case.liver.dice:.3f}"),
    )
    say(quiet, f"scored on {evaluation.grid}")
    if as_json:
        click.echo(json.dumps(evaluation.as_json(), allow_nan=False))
    else:
        _print(evaluation)


def _print(evaluation: Evaluation) -> None:
    """Tables for a person."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    cases = Table(title="Cases (mm; – where undefined)")
    cases.add_column("case")
    for organ in ("liver", "tumor"):
        for name in _COLUMNS:
            cases.add_column(f"{organ} {name}", justify="right")
    cases.add_column("lesions tp/fp/fn", justify="right")
    for case in evaluation.cases:
        entry = case.as_json()
        scores = [_text(entry[organ][name]) for organ in ("liver", "tumor") for name in _COLUMNS]
        cases.add_row(case.case, *scores, "/".join(str(n) for n in entry["lesions"].values()))
    console.print(cases)
    summary = Table(title="Data set")
    summary.add_column("number")
    summary.add_column("value", justify="right")
    found = evaluation.as_json()
    for name, value in found["lits"].items():
        summary.add_row(f"LiTS {name}", _text(value))
    for name, value in found["nnunet"].items():
        summary.add_row(f"nnU-Net {name}", _text(value))
    console.print(summary)


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"

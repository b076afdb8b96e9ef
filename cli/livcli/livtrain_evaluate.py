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
@click.argument("more", nargs=-1, metavar="[REF]...", type=click.Path(path_type=Path, exists=True))
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
    help="Label NIfTIs, or raw data set folders; several may follow. Without it, the store's labels on its grid.",
)
@store_option
@click.option(
    "--against",
    type=click.Path(path_type=Path, exists=True),
    help="Other predictions of the same cases, to compare case by case.",
)
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
    more: tuple[Path, ...],
    predictions: Path,
    references: tuple[Path, ...],
    store: Path,
    against: Path | None,
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
    from livtrain.evaluate import compare, evaluate_folder

    if more and not references:
        raise click.UsageError(f"{more[0]}: references follow -r")
    references += more
    facts = load_catalog(catalog or catalog_beside(references))
    scored, *other = (
        evaluate_folder(
            folder,
            references,
            store,
            catalog=facts,
            spacing=spacing,
            progress=lambda case: say(quiet, f"{case.case}: liver Dice {case.liver.dice:.3f}"),
        )
        for folder in (predictions, against)
        if folder is not None
    )
    differences = compare(scored, other[0]) if other else {}
    say(quiet, f"scored on {scored.grid}")
    if as_json:
        extra = {"against": {name: entry.as_json() for name, entry in differences.items()}} if differences else {}
        click.echo(json.dumps({**scored.as_json(), **extra}, allow_nan=False))
        return
    _print(scored)
    for name, entry in differences.items():
        click.echo(
            f"{name} against {against}: mean {entry.mean:+.4f}, median {entry.median:+.4f}, better in {entry.better} "
            f"and worse in {entry.worse} of {entry.cases} cases, Wilcoxon p = {entry.p_value:.3g}"
        )


def _print(evaluation: Evaluation) -> None:
    """Tables for a person: a row for each case and structure, then the data set's numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    longest = max(len(case.case) for case in evaluation.cases)
    console = Console(highlight=False, width=100 + longest)  # a narrow terminal wraps lines; nothing is cut off
    cases = Table(box=box.SIMPLE, title="Cases (distances in mm, volumes in ml, – where undefined)")
    for name in ("case", ""):
        cases.add_column(name, no_wrap=True)
    for name in (*_COLUMNS, "ml", "ref ml", "tp/fp/fn"):
        cases.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for case in evaluation.cases:
        entry = case.as_json()
        lesions = "/".join(str(n) for n in entry["lesions"].values())
        for organ in ("liver", "tumor"):
            volumes = [f"{entry['volume_ml'][key]:.1f}" for key in (organ, f"{organ}_ref")]
            scores = [_text(entry[organ][name], 3) for name in _COLUMNS]
            cases.add_row(case.case, organ, *scores, *volumes, lesions if organ == "tumor" else "")
    console.print(cases)
    numbers = Table("", "liver", "lesion", box=box.SIMPLE, title="Data set: LiTS challenge")
    found = evaluation.as_json()
    lits = found["lits"]
    names = [name.partition("_") for name in lits if name.startswith(("liver_", "lesion_"))]
    for name in dict.fromkeys(part[2] for part in names):
        numbers.add_row(
            name, *(_text(lits[f"{o}_{name}"]) if f"{o}_{name}" in lits else "" for o in ("liver", "lesion"))
        )
    for name in ("RMSE_Tumorburden", "MAXERROR_Tumorburden"):
        numbers.add_row(name, "", _text(lits[name]))
    numbers.add_section()
    numbers.add_row("nnU-Net dice", _text(found["nnunet"]["liver_dice"]), _text(found["nnunet"]["tumor_dice"]))
    console.print(numbers)
    console.print("lesion dice ... msd: over detected lesions; nnU-Net dice: over cases where either side has any.")


def _text(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"

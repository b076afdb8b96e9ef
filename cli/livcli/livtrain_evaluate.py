"""`livtrain evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livcli.options import output_options, say, store_option

if TYPE_CHECKING:
    from livtrain.evaluate import CaseScores


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
    help="Folder or zip of predicted label NIfTIs, or one file.",
)
@click.option(
    "-r",
    "--references",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    help="Label NIfTIs, folders or zips of them, or raw data sets; several may follow.  [default: the store's labels, "
    "on its grid]",
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
@click.option(
    "--tolerance-mm",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    help="Distance at which a surface counts as met, for the surface Dice.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="Write one page with tables, charts and the worst cases: an .html file, or a folder for report.html.",
)
@click.option("--worst", type=click.IntRange(min=0), default=3, show_default=True, help="Worst cases in the report.")
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Also rates, lesions by size and bootstrap intervals (with --json: under `details`).",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap over patients.")
@output_options
def evaluate(
    more: tuple[Path, ...],
    predictions: Path,
    references: tuple[Path, ...],
    store: Path,
    against: Path | None,
    spacing: Any,
    catalog: Path | None,
    tolerance_mm: float,
    report: Path | None,
    worst: int,
    everything: bool,
    seed: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score predictions as the LiTS challenge and nnU-Net do; files are paired by case.

    With --json, one object with `cases`, `lits` (the challenge's names) and `nnunet`; undefined numbers are null.
    """
    from livcli.livtrain_tables import print_details, print_differences, print_evaluation
    from livprep.catalog import load_catalog
    from livprep.sources import catalog_beside
    from livtrain.evaluate import compare, evaluate_pairs, pair_folder

    if more and not references:
        raise click.UsageError(f"{more[0]}: references follow -r")
    references += more
    facts = load_catalog(catalog or catalog_beside(references))

    def told(case: CaseScores) -> None:
        say(quiet, f"{case.case}: liver Dice {case.liver.dice:.3f}")

    scored, *other = (
        (evaluate_pairs(pairs, grid, tolerance_mm=tolerance_mm, progress=told), pairs)
        for pairs, grid in (
            pair_folder(folder, references, store, catalog=facts, spacing=spacing)
            for folder in (predictions, against)
            if folder is not None
        )
    )
    evaluation, pairs = scored
    differences = compare(evaluation, other[0][0], seed) if other else {}
    say(quiet, f"scored on {evaluation.grid}")
    if report is not None:
        from livtrain.evaluate.report import write_report

        named = "" if against is None else against.name
        path = write_report(report, evaluation, pairs, differences=differences, other=named, worst=worst, seed=seed)
        say(quiet, f"report: {path}")
    if as_json:
        extra: dict[str, Any] = {"details": evaluation.details(seed)} if everything else {}
        if differences:
            extra["against"] = {name: entry.as_json() for name, entry in differences.items()}
        click.echo(json.dumps({**evaluation.as_json(), **extra}, allow_nan=False))
        return
    print_evaluation(evaluation)
    if everything:
        print_details(evaluation, seed)
    print_differences(differences, str(against))

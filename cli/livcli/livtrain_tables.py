"""Tables of `livtrain evaluate` for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from livtrain.evaluate import Difference, Evaluation

_COLUMNS = ("dice", "assd", "hd95", "surface_dice")


def print_evaluation(evaluation: Evaluation) -> None:
    """A row for each case and structure, then the data set's numbers."""
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


def print_details(evaluation: Evaluation, seed: int) -> None:
    """Intervals over patients, and lesions by size."""
    from livtrain.evaluate import INTERVALS

    console = Console(highlight=False, width=150)
    intervals = Table("", "value", "95 % interval", "patients", "what it is", box=box.SIMPLE, title="Over patients")
    for name, entry in evaluation.intervals(seed).items():
        span = f"{_text(entry.low)} … {_text(entry.high)}"
        intervals.add_row(name, _text(entry.estimate), span, str(entry.patients), INTERVALS[name])
    console.print(intervals)
    sizes = Table(box=box.SIMPLE, title="Lesions by diameter of the sphere of the same volume (pooled)")
    for name in ("size", "reference", "found: any voxel", "IoU > 0.5", "predicted", "true: any voxel", "IoU > 0.5"):
        sizes.add_column(name, justify="left" if name == "size" else "right")
    for size in evaluation.by_size:
        found = (_text(size.sensitivity, 3), _text(size.sensitivity_matched, 3))
        true = (_text(size.precision, 3), _text(size.precision_matched, 3))
        sizes.add_row(size.name, str(size.reference), *found, str(size.predicted), *true)
    console.print(sizes)


def print_differences(differences: Mapping[str, Difference], other: str) -> None:
    """One line for each compared score."""
    for name, entry in differences.items():
        click.echo(
            f"{name} against {other}: mean {entry.mean:+.4f} (95 % {entry.low:+.4f} … {entry.high:+.4f}), median "
            f"{entry.median:+.4f}, better in {entry.better} and worse in {entry.worse} of {entry.patients} patients, "
            f"Wilcoxon p = {entry.p_value:.3g}"
        )


def _text(value: float | None, digits: int = 4) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"  # NaN differs from itself

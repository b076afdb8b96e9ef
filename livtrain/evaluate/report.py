"""The evaluation on one page: static HTML in one file, without scripts and without anything fetched."""

from __future__ import annotations

import base64
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from livprep.provenance import package_version
from livtrain.evaluate.comparison import Difference
from livtrain.evaluate.evaluation import Evaluation, Pair
from livtrain.evaluate.scoring import CaseScores
from livtrain.evaluate.summary import INTERVALS
from livtrain.evaluate.worst import worst_cases
from livtrain.figures import draw_boxes, draw_burden, draw_detection
from livtrain.metrics import Interval

TEMPLATE = "report.html"
WORST_EACH = 3
"""Cases of the gallery for each structure."""
_DASH = "–"
_STRUCTURES = ("liver", "tumor")


@dataclass(frozen=True)
class Row:
    """A line of the table of intervals."""

    name: str
    interval: Interval
    meaning: str


def report_path(target: Path) -> Path:
    """The file that `--report` means: an .html file, or `report.html` in a folder."""
    return target if target.suffix.lower() in (".html", ".htm") else target / TEMPLATE


def write_report(
    target: Path,
    evaluation: Evaluation,
    pairs: Sequence[Pair],
    *,
    differences: Mapping[str, Difference] | None = None,
    other: str = "",
    worst: int = WORST_EACH,
    seed: int = 0,
) -> Path:
    """Write the page.

    Parameters
    ----------
    target
        An .html file, or a folder for `report.html`; the file appears whole.
    evaluation, pairs
        What was scored, and from which files, which the gallery reads again.
    differences, other
        Paired comparison with another set of predictions, and what that set is called.
    worst
        Worst cases to show for each structure; 0 for none.
    seed
        Of the bootstrap.

    Returns
    -------
    The file.
    """
    path = report_path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = _environment().from_string(files("livtrain.evaluate").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    text = page.render(
        evaluation=evaluation,
        version=package_version(),
        rows=[Row(name, entry, INTERVALS[name]) for name, entry in evaluation.intervals(seed).items()],
        patients=len({case.patient for case in evaluation.cases}),
        classes=evaluation.by_size,
        boxes=_image(_boxes(evaluation), "svg+xml"),
        detection=_image(_detection(evaluation), "svg+xml"),
        burden=_image(draw_burden(*_burdens(evaluation.cases)), "svg+xml"),
        without_burden=sum(_burden(case) is None for case in evaluation.cases),
        gallery=[(entry, _image(entry.png, "png")) for entry in worst_cases(evaluation, pairs, worst)] if worst else [],
        differences=differences or {},
        other=other,
    )
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    return environment


def _number(value: float | None, digits: int = 3) -> str:
    return _DASH if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _image(data: bytes, kind: str) -> Markup:
    """A data URI; only the alphabet of base64 enters the page."""
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}")  # noqa: S704


def _boxes(evaluation: Evaluation) -> bytes:
    tolerance = f"surface Dice at {evaluation.tolerance_mm:g} mm"
    panels: dict[str, str] = {"Dice": "dice", tolerance: "surface_dice", "ASSD, mm": "assd", "HD95, mm": "hd95"}
    values: dict[str, dict[str, list[float]]] = {
        title: {name: [getattr(getattr(case, name), score) for case in evaluation.cases] for name in _STRUCTURES}
        for title, score in panels.items()
    }
    return draw_boxes(values, lower_is_better=("ASSD, mm", "HD95, mm"))


def _detection(evaluation: Evaluation) -> bytes:
    return draw_detection(
        evaluation.by_size, [lesion for case in evaluation.cases for lesion in case.lesions.reference]
    )


def _burdens(cases: Sequence[CaseScores]) -> tuple[list[float], list[float]]:
    """Tumor burden in percent of reference and prediction, of the cases where both sides have liver."""
    known: list[Any] = [burden for case in cases if (burden := _burden(case)) is not None]
    return [reference for reference, _ in known], [prediction for _, prediction in known]


def _burden(case: CaseScores) -> tuple[float, float] | None:
    volumes = case.volume_ml
    if not volumes["liver"] or not volumes["liver_ref"]:
        return None
    return 100 * volumes["tumor_ref"] / volumes["liver_ref"], 100 * volumes["tumor"] / volumes["liver"]

"""The page: charts of all cases, what stands out, and a strip of pictures a case, in one file without any script."""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined

from livprep.figures import draw_histograms, draw_lesions, draw_spacing, draw_volumes
from livprep.labels import Label
from livprep.overlaps import find_overlaps
from livprep.provenance import package_version
from livprep.reporting.facts import CaseFacts
from livprep.store import Store
from livprep.tallies import HU
from livprep.windows import Window

ROBUST_Z = 3.5
"""Iglewicz and Hoaglin 1993: a modified z score beyond this is a candidate outlier."""
_LEAST = 8
"""Cases below which no value is called unusual."""


@dataclass(frozen=True)
class Outlier:
    """A value of a case that lies far from the cohort's."""

    case: str
    what: str
    value: str
    usual: str
    z: float


def write_report(path: Path, store: Store, facts: Sequence[CaseFacts], windows: Sequence[Window]) -> Path:
    """Write the page, replaced whole.

    Parameters
    ----------
    path
        An `.html` file, or a folder for `report.html`.
    facts
        Of `collect`, in any order.
    windows
        Shaded in the histograms.

    Returns
    -------
    Path of the file.
    """
    target = path if path.suffix.lower() in (".html", ".htm") else path / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    text = render(store, sorted(facts, key=lambda each: each.case), windows)
    staged = target.with_name(f".{target.name}.part")
    staged.write_text(text, encoding="utf-8")
    staged.replace(target)
    return target


def render(store: Store, facts: Sequence[CaseFacts], windows: Sequence[Window]) -> str:
    """The page's HTML; every text is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files("livprep.reporting").joinpath("report.html").read_text("utf-8"))
    labelled = [each for each in facts if each.labelled]
    charts = _charts(facts, labelled, windows)
    codes = Counter(warning.split(":")[0] for each in facts for warning in each.warnings)
    return template.render(
        store=store.path.name,
        preparation=store.preparation.as_dict(),
        profile=store.meta.profile,
        facts=facts,
        labelled=labelled,
        patients=len({each.patient for each in facts}),
        with_tumor=sum(each.tumor_ml > 0 for each in labelled),
        lesions=sum(len(each.lesions_mm) for each in labelled),
        gigabytes=sum(each.stored_bytes for each in facts) / 1e9,
        codes=sorted(codes.items()),
        duplicates=find_overlaps(
            {each.case: each.patient for each in facts}, {each.case: each.fingerprint for each in facts}
        ),
        outliers=find_outliers(facts),
        least=_LEAST,
        robust_z=ROBUST_Z,
        splits=[(name, store.read_split(name)) for name in store.split_names()],
        charts={name: _inline(data, "svg+xml") for name, data in charts.items()},
        pictures={each.case: _inline(each.thumbnail, "webp") for each in facts},
        version=package_version(),
    )


def _charts(facts: Sequence[CaseFacts], labelled: Sequence[CaseFacts], windows: Sequence[Window]) -> dict[str, bytes]:
    sizes: dict[str, list[tuple[float, float, int, int]]] = defaultdict(list)
    for each in facts:
        sizes[each.dataset].append((each.spacing_mm[2], each.spacing_mm[0], each.shape_zyx[0], each.shape_zyx[2]))
    total = sum((each.counts for each in facts), start=np.zeros((16, len(HU)), dtype=np.int64))
    classes = {label.name.lower(): total[label] for label in Label}
    classes["not labelled"] = total[15]
    return {
        "spacing": draw_spacing(sizes),
        "histograms": draw_histograms(HU, classes, windows),
        "volumes": draw_volumes([each.liver_ml for each in labelled], [each.tumor_ml for each in labelled]),
        "lesions": draw_lesions(
            [len(each.lesions_mm) for each in labelled], [mm for each in labelled for mm in each.lesions_mm]
        ),
    }


def find_outliers(facts: Sequence[CaseFacts]) -> list[Outlier]:
    """Values whose modified z score, .6745 (x - median) / MAD, is beyond 3.5; volumes and spacings by their logarithm.

    Nothing is said of fewer than eight cases, nor where more than half of them agree.
    """
    measures: Mapping[str, tuple[str, dict[str, float], bool]] = {
        "slice distance": ("mm", {each.case: each.spacing_mm[0] for each in facts}, True),
        "in-plane spacing": ("mm", {each.case: each.spacing_mm[2] for each in facts}, True),
        "covered length": ("mm", {each.case: each.spacing_mm[0] * each.shape_zyx[0] for each in facts}, True),
        "liver volume": ("ml", {each.case: each.liver_ml for each in facts if each.liver_ml > 0}, True),
        "tumor volume": ("ml", {each.case: each.tumor_ml for each in facts if each.tumor_ml > 0}, True),
        "liver HU (mode)": ("HU", {each.case: each.liver_hu for each in facts if each.liver_hu is not None}, False),
        "lowest HU": ("HU", {each.case: float(each.hu_range[0]) for each in facts}, False),
        "highest HU": ("HU", {each.case: float(each.hu_range[1]) for each in facts}, False),
    }
    found = []
    for what, (unit, values, by_log) in measures.items():
        if len(values) < _LEAST:
            continue
        plain = np.array(list(values.values()), dtype=np.float64)
        scale = np.log(plain) if by_log else plain
        middle = np.median(scale)
        spread = float(np.median(np.abs(scale - middle)))
        if spread == 0:
            continue
        for case, value, z in zip(values, plain, 0.6745 * (scale - middle) / spread, strict=True):
            if abs(z) > ROBUST_Z:
                usual = f"median {np.median(plain):.4g} {unit}"
                found.append(Outlier(case, what, f"{value:.4g} {unit}", usual, float(z)))
    return sorted(found, key=lambda each: (-abs(each.z), each.case))


def _inline(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"

"""Predictions into a folder: each file appears whole, and a scan that fails does not stop the others."""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from livprep.cases import Rejection
from livprep.errors import GeometryError, SourceError, StoreError, UsageError
from livprep.formats.dicom_seg import write_dicom_seg
from livprep.formats.nifti import encode, write_labels, write_nifti
from livprep.geometry import Geometry
from livprep.labels import Label
from livtrain.inference.predictor import Prediction, Predictor
from livtrain.inference.scans import LoadedScan, Scan

log = logging.getLogger(__name__)

PROBABILITIES = "probabilities"
"""Folder beside the predictions for probabilities, so that `evaluate` does not take them for labels."""


Format = Literal["nifti", "dicom-seg"]
_SUFFIXES: dict[Format, str] = {"nifti": "nii.gz", "dicom-seg": "dcm"}


@dataclass(frozen=True)
class PredictReceipt:
    """What became of one scan; `status` is predicted or rejected."""

    case: str
    status: Literal["predicted", "rejected"]
    code: str = ""
    detail: str = ""
    path: str = ""
    seconds: float = 0.0
    volume_ml: dict[str, float] = field(default_factory=dict)


def predict_folder(
    scans: Iterable[Scan],
    predictor: Predictor,
    out: Path,
    *,
    rejected: Sequence[Rejection] = (),
    header: Literal["repaired", "source"] = "repaired",
    submission: Path | None = None,
    form: Format = "nifti",
) -> Iterator[PredictReceipt]:
    """Segment scans into `<out>/<name>.nii.gz`, or `.dcm`, one receipt each.

    Parameters
    ----------
    scans
        What to segment.
    predictor
        With its options; probabilities go to `<out>/probabilities/<name>_<structure>.nii.gz` (float32).
    out
        Made if it does not exist.
    rejected
        What was found beside the scans but cannot be read; each gets a receipt too.
    header
        Geometry to write: as repaired, or as the source's header has it (a challenge compares with that).
    submission
        A zip to write besides, as the LiTS challenge takes it: `test-segmentation-N.nii` with the source's
        header.
    form
        `dicom-seg` writes a DICOM segmentation that refers to the source's slices, and rejects scans that have none.

    Raises
    ------
    UsageError
        The submission would hold a scan that is no LiTS test case.
    """
    out.mkdir(parents=True, exist_ok=True)
    for fault in rejected:
        yield PredictReceipt(fault.case_id, "rejected", fault.code, fault.detail)
    zipped = None if submission is None else _Submission(submission)
    try:
        for scan in scans:
            yield _one(scan, predictor, out, header, zipped, form)
        if zipped is not None:
            zipped.publish()
    finally:
        if zipped is not None:
            zipped.discard()


def _one(
    scan: Scan,
    predictor: Predictor,
    out: Path,
    header: Literal["repaired", "source"],
    submission: _Submission | None,
    form: Format,
) -> PredictReceipt:
    started = time.monotonic()
    try:
        loaded = scan.load()
        if form == "dicom-seg" and not loaded.dicom:
            raise SourceError("DICOM_SEG", f"{scan.name}: read from a store or NIfTI, expected a DICOM series")
        prediction = predictor.predict(loaded)
        geometry = loaded.source if header == "repaired" else loaded.header
        path = out / f"{scan.name}.{_SUFFIXES[form]}"
        if form == "dicom-seg":
            write_dicom_seg(path, prediction.labels, loaded.source, loaded.dicom)
        else:
            write_labels(path, prediction.labels, geometry)
    except (SourceError, GeometryError, StoreError) as error:
        if error.exit_code == 2:
            raise  # a wrong request is wrong for every scan
        return PredictReceipt(scan.name, "rejected", error.code, error.message)
    _write_probabilities(out / PROBABILITIES, scan.name, prediction, geometry)
    if submission is not None:
        submission.add(loaded, prediction)
    return PredictReceipt(
        scan.name,
        "predicted",
        path=str(path),
        seconds=round(time.monotonic() - started, 3),
        volume_ml={
            "liver": round(prediction.volume_ml(Label.LIVER), 3),
            "tumor": round(prediction.volume_ml(Label.TUMOR), 3),
        },
    )


def _write_probabilities(folder: Path, name: str, prediction: Prediction, geometry: Geometry) -> None:
    for structure, values in prediction.probabilities.items():
        folder.mkdir(exist_ok=True)
        write_nifti(folder / f"{name}_{structure}.nii.gz", values, geometry)


class _Submission:
    """A zip in the LiTS challenge's form, written beside its place and renamed when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        self._zip = zipfile.ZipFile(self._partial, "w", zipfile.ZIP_DEFLATED)

    def add(self, scan: LoadedScan, prediction: Prediction) -> None:
        """Put one prediction in."""
        match = re.fullmatch(r"litstest-0*(\d+)", scan.name)
        if match is None:
            raise UsageError("USAGE", f"--submission: {scan.name} is no LiTS test case (litstest-000 ... 069)")
        entry = zipfile.ZipInfo(f"test-segmentation-{match[1]}.nii")  # a fixed date: the same bytes every time
        entry.compress_type = zipfile.ZIP_DEFLATED
        self._zip.writestr(entry, encode(prediction.labels, scan.header))

    def publish(self) -> None:
        """Make the zip visible."""
        self._zip.close()
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self._path)

    def discard(self) -> None:
        """Remove what was not published."""
        self._zip.close()
        self._partial.unlink(missing_ok=True)

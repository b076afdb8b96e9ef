"""Predictions into a folder: each file appears whole, and a scan that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from livprep.cases import FileRef, Note, Rejection
from livprep.errors import GeometryError, SourceError, StoreError
from livprep.formats.dicom_seg import check_series, write_dicom_seg
from livprep.formats.nifti import write_labels, write_nifti
from livprep.geometry import Geometry
from livprep.labels import Label
from livprep.machine import free_memory_bytes
from livtrain.inference.options import Prediction
from livtrain.inference.predictor import Predictor
from livtrain.inference.scans import Scan
from livtrain.inference.submission import Submission, check_submission

PROBABILITIES = "probabilities"
"""Folder beside the predictions for probabilities, so that `evaluate` does not take them for labels."""


Format = Literal["nifti", "dicom-seg"]
_SUFFIXES: dict[Format, str] = {"nifti": "nii.gz", "dicom-seg": "dcm"}
_CASE_FAULTS = (SourceError, GeometryError, StoreError)


@dataclass(frozen=True)
class PredictReceipt:
    """What became of one scan; `status` is predicted or rejected.

    `warnings` say what of the scan, or of the prediction, is to be looked at. `seconds` passed from opening the scan to
    its labels, `network_s` of them in networks; writing, which goes on beside the next scan, is not in them.
    """

    case: str
    status: Literal["predicted", "rejected"]
    code: str = ""
    detail: str = ""
    path: str = ""
    seconds: float = 0.0
    network_s: float = 0.0
    volume_ml: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def predict_folder(
    scans: Iterable[Scan],
    predictor: Predictor,
    out: Path,
    *,
    rejected: Sequence[Rejection] = (),
    header: Literal["repaired", "source"] = "repaired",
    submission: Path | None = None,
    form: Format = "nifti",
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[PredictReceipt]:
    """Segment scans into `<out>/<name>.nii.gz`, or `.dcm`, one receipt each.

    While one scan is computed, the prediction of the one before is packed and written.

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
        `dicom-seg` writes a DICOM segmentation that refers to the source's slices, and rejects scans that have none
        or of another kind before they are segmented.
    say
        Takes one line on what the submission lacks.

    Raises
    ------
    UsageError
        The submission would hold a scan that is no LiTS test case.
    """
    scans = list(scans)
    if submission is not None:
        check_submission([scan.name for scan in scans])
    out.mkdir(parents=True, exist_ok=True)
    for fault in rejected:
        yield PredictReceipt(fault.case_id, "rejected", fault.code, fault.detail)
    zipped = None if submission is None else Submission(submission)
    try:
        with ThreadPoolExecutor(1, "livtrain-write") as writer:
            written: Future[PredictReceipt] | None = None
            for scan in scans:
                begun = _begin(scan, predictor, out, header, zipped, form, writer)
                if written is not None:
                    yield written.result()
                written = begun
            if written is not None:
                yield written.result()
        if zipped is not None:
            if zipped.missing:
                say(f"{submission}: lacks the test cases {', '.join(map(str, zipped.missing))}")
            zipped.publish()
    finally:
        if zipped is not None:
            zipped.discard()


def _begin(
    scan: Scan,
    predictor: Predictor,
    out: Path,
    header: Literal["repaired", "source"],
    submission: Submission | None,
    form: Format,
    writer: ThreadPoolExecutor,
) -> Future[PredictReceipt]:
    """Segment a scan, and have it written."""
    try:
        loaded = scan.load()
        if form == "dicom-seg":
            if not loaded.dicom:
                raise SourceError("DICOM_SEG", f"{scan.name}: read from a store or NIfTI, expected a DICOM series")
            check_series(loaded.dicom, loaded.source)
        prediction = predictor.predict(loaded)
    except _CASE_FAULTS as error:
        rejection = _rejection(scan.name, error)
        return writer.submit(lambda: rejection)
    except MemoryError:
        detail = f"{scan.name}: does not fit into memory, of which {free_memory_bytes() / 2**30:.1f} GiB are free"
        large = PredictReceipt(scan.name, "rejected", "CASE_TOO_LARGE", detail)
        return writer.submit(lambda: large)
    # Without the HU, whose room the next scan's shall have.
    target = _Target(scan.name, loaded.source, loaded.header, loaded.dicom, loaded.warnings)
    return writer.submit(_write, target, prediction, out, header, submission, form)


@dataclass(frozen=True)
class _Target:
    """What writing needs of a scan: see `LoadedScan`."""

    name: str
    source: Geometry
    header: Geometry
    dicom: tuple[FileRef, ...]
    warnings: tuple[str, ...]


def _write(
    scan: _Target,
    prediction: Prediction,
    out: Path,
    header: Literal["repaired", "source"],
    submission: Submission | None,
    form: Format,
) -> PredictReceipt:
    geometry = scan.source if header == "repaired" else scan.header
    path = out / f"{scan.name}.{_SUFFIXES[form]}"
    try:
        if form == "dicom-seg":
            write_dicom_seg(path, prediction.labels, scan.source, scan.dicom)
        else:
            write_labels(path, prediction.labels, geometry)
    except _CASE_FAULTS as error:
        return _rejection(scan.name, error)
    for structure, values in prediction.probabilities.items():
        (out / PROBABILITIES).mkdir(exist_ok=True)
        write_nifti(out / PROBABILITIES / f"{scan.name}_{structure}.nii.gz", values, geometry)
    if submission is not None:
        submission.add(scan.name, prediction.labels, scan.header)
    liver_ml, tumor_ml = (round(prediction.volume_ml(label), 3) for label in (Label.LIVER, Label.TUMOR))
    lacking = () if prediction.labels.any() else (str(Note("LIVER_NOT_FOUND", f"{scan.name}: every voxel is 0")),)
    return PredictReceipt(
        scan.name,
        "predicted",
        path=str(path),
        seconds=round(prediction.seconds, 3),
        network_s=round(prediction.network_s, 3),
        volume_ml={"liver": liver_ml, "tumor": tumor_ml},
        warnings=(*scan.warnings, *lacking),
    )


def _rejection(name: str, error: SourceError | GeometryError | StoreError) -> PredictReceipt:
    if error.exit_code == 2:
        raise error  # a wrong request is wrong for every scan
    return PredictReceipt(name, "rejected", error.code, error.message)

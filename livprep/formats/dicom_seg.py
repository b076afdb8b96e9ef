"""A label map as a DICOM Segmentation object (PS3.3 A.51) that refers to the slices it was made from.

highdicom writes it, from copies of the slices' headers that hold nothing but the elements of `COPIED`: what a header
says besides cannot reach the file. Of these, four identify the patient and the study, because the standard demands
that objects of one study agree in them; its other identifying elements may be empty (type 2) and are.

highdicom is imported when it is needed (`pip install 'livprep[export]'`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from livprep.cases import FileRef
from livprep.errors import SourceError, UsageError
from livprep.formats.archive import close_archives, read_bytes
from livprep.formats.dicom_header import ENHANCED_SOP_CLASSES, guarded, is_localizer
from livprep.formats.dicom_write import uid_from
from livprep.geometry import Geometry
from livprep.labels import LABEL_COLORS, Label, LabelArray
from livprep.provenance import package_version

IDENTIFYING = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
"""PatientID ties the object to its patient; the UIDs to its study, its source series and its space."""
COPIED = (
    *IDENTIFYING, "SOPClassUID", "SOPInstanceUID", "Modality", "Rows", "Columns", "PixelSpacing",
    "ImagePositionPatient", "ImageOrientationPatient",
)  # fmt: skip
"""All that is read off a source slice and written."""
EMPTY = (
    "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip
"""Elements of the patient and study modules that must be there and may be empty (PS3.3 C.7.1.1, C.7.2.1)."""
_DEMANDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_TOLERANCE_MM = 0.1
_LIVER = ("10200004", "SCT", "Liver")
_NEOPLASM = ("108369006", "SCT", "Neoplasm")
_STRUCTURE = ("91723000", "SCT", "Anatomical Structure")
_ABNORMAL = ("49755003", "SCT", "Morphologically Abnormal Structure")
_INTELLIGENCE = ("123110", "DCM", "Artificial Intelligence")


def write_dicom_seg(path: Path, labels_zyx: LabelArray, geometry: Geometry, files: Sequence[FileRef]) -> None:
    """Write labels as segment 1, liver (label 1: without its tumors), and segment 2, neoplasm of the liver (label 2).

    Parameters
    ----------
    path
        The file; it appears whole.
    labels_zyx, geometry
        Labels `(z, y, x)` on the grid of the series, as its reader orders it.
    files
        The series' files, one slice each, in any order.

    Raises
    ------
    SourceError
        DICOM_SEG: the series lacks an identifier that the standard demands, is of an enhanced kind, or is not the
        one on whose grid the labels lie. DICOM_…: a file is no DICOM.
    """
    sources = _usable_sources(files, geometry)
    built = _build(labels_zyx, geometry, sources)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as file:
            built.save_as(file, enforce_file_format=True)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_series(files: Sequence[FileRef], geometry: Geometry) -> None:
    """See, before there are labels, whether `write_dicom_seg` could write them; raises what that would raise.

    Raises
    ------
    UsageError
        highdicom is not installed.
    """
    if importlib.util.find_spec("highdicom") is None:
        raise UsageError("USAGE", "DICOM segmentations need highdicom: pip install 'livprep[export]'")
    _usable_sources(files, geometry)


def _usable_sources(files: Sequence[FileRef], geometry: Geometry) -> list[Dataset]:
    """Bare headers of the slices in the order of the grid's z, with all that the standard demands."""
    sources = _sorted_sources(files, geometry)
    for name in _DEMANDED:
        if not all(source.get(name) for source in sources):
            raise SourceError("DICOM_SEG", f"{files[0]}: {name} is missing or empty, expected one in every slice")
        if name == "SeriesInstanceUID" and len({source.get(name) for source in sources}) > 1:
            raise SourceError("DICOM_SEG", f"{files[0]}: slices of several series, expected one")
    if not all(source.FrameOfReferenceUID for source in sources):
        # 3DIRCADb's slices name none; the object must, and slices of one series lie in one space.
        for source in sources:
            source.FrameOfReferenceUID = uid_from("frame of reference", sources[0].SeriesInstanceUID)
    for source in sources:
        source.SliceThickness = geometry.spacing_mm[0]  # highdicom compares; headers often have another or none
    return sources


def _sorted_sources(files: Sequence[FileRef], geometry: Geometry) -> list[Dataset]:
    """Bare headers of the slices in the order of the grid's z, checked against it."""
    try:
        sources = [source for source in map(_bare, files) if source is not None]
    finally:
        close_archives()
    depth, rows, columns = geometry.shape_zyx
    affine = geometry.affine_lps
    expected = affine[:3, 3] + np.arange(depth)[:, None] * affine[:3, 2]
    sources.sort(key=lambda source: float(np.dot(source.ImagePositionPatient, affine[:3, 2])))
    found = np.array([[float(v) for v in source.ImagePositionPatient] for source in sources]).reshape(-1, 3)
    fits = found.shape == expected.shape and bool(np.abs(found - expected).max(initial=0) <= _TOLERANCE_MM)
    if not fits or any((source.Rows, source.Columns) != (rows, columns) for source in sources):
        raise SourceError(
            "DICOM_SEG", f"{files[0]}: {len(sources)} slices that do not form the labels' grid of {depth} slices"
        )
    return sources


def _bare(ref: FileRef) -> Dataset | None:
    """The elements of `COPIED` of a slice, and `EMPTY` ones; None for a localizer."""
    with guarded(ref), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what else is wrong with a header was said when the series was read
        header = pydicom.dcmread(
            io.BytesIO(read_bytes(ref)), force=True, stop_before_pixels=True, specific_tags=[*COPIED, "ImageType"]
        )
        if is_localizer(header.get("ImageType")):
            return None
        if header.get("SOPClassUID") in ENHANCED_SOP_CLASSES or "ImagePositionPatient" not in header:
            raise SourceError("DICOM_SEG", f"{ref}: an enhanced object, expected one slice a file")
        bare = Dataset()
        for name in EMPTY:
            setattr(bare, name, "")
        for name in COPIED:
            setattr(bare, name, header.get(name, ""))
    return bare


def _build(labels: LabelArray, geometry: Geometry, sources: Sequence[Dataset]) -> Any:
    import highdicom

    first = sources[0]
    content = hashlib.sha256(labels.tobytes()).hexdigest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty patient's name is meant
        return highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=labels,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=_descriptions(highdicom),
            # The same labels of the same series make the same object again.
            series_instance_uid=uid_from("segmentation series", first.SeriesInstanceUID, content),
            series_number=1,
            sop_instance_uid=uid_from("segmentation", first.SeriesInstanceUID, content),
            instance_number=1,
            manufacturer="livprep",
            manufacturer_model_name="livtrain",
            software_versions=package_version(),
            device_serial_number="0",
            series_description="Liver and liver tumor, predicted",
            content_label="LIVER_TUMOR",
            content_description="Predicted liver and liver tumor; not for diagnosis",
            pixel_measures=highdicom.PixelMeasuresSequence(
                pixel_spacing=[float(mm) for mm in first.PixelSpacing],
                slice_thickness=geometry.spacing_mm[0],
                spacing_between_slices=geometry.spacing_mm[0],
            ),
        )


def _descriptions(highdicom: Any) -> list[Any]:
    code = highdicom.sr.CodedConcept
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="livtrain", version=package_version(), family=code(*_INTELLIGENCE)
    )
    common = {
        "algorithm_type": highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        "algorithm_identification": algorithm,
        "anatomic_regions": [code(*_LIVER)],
    }
    made = []
    for label, category, kind in ((Label.LIVER, _STRUCTURE, _LIVER), (Label.TUMOR, _ABNORMAL, _NEOPLASM)):
        own = dict(common)
        if label is Label.LIVER:
            del own["anatomic_regions"]
        made.append(
            highdicom.seg.SegmentDescription(
                segment_number=int(label),
                segment_label="Liver" if label is Label.LIVER else "Liver tumor",
                segmented_property_category=code(*category),
                segmented_property_type=code(*kind),
                display_color=highdicom.color.CIELabColor.from_rgb(*LABEL_COLORS[label]),
                **own,
            )
        )
    return made

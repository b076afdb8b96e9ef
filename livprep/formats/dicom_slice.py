"""Headers of DICOM slices: one slice a file, or one a frame of an enhanced (multi-frame) CT object.

Header text of a patient never enters a message or a log.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from livprep.cases import FileRef
from livprep.errors import SourceError
from livprep.formats.dicom_header import ENHANCED_SOP_CLASSES, LOSSY_SYNTAXES, guarded, is_localizer
from livprep.formats.dicom_pixels import StoredPixels, describe_pixels
from livprep.formats.dicom_values import Elements, parse
from livprep.geometry import shortest_decimal

MAX_FRAMES = 4096
"""LiTS's longest scan has 987 slices."""
_MACROS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "FrameType": "CTImageFrameTypeSequence",
}
"""Where an enhanced object keeps what a plain slice has at its top (PS3.3, C.7.6.16.2)."""


@dataclass(frozen=True, eq=False)
class Slice:
    """Geometry, identity and stored values of one slice; lengths in mm, vectors in LPS, None where not stated.

    `images` counts those of the slice's acquisition, `series_images` those of the series. `lossy`: the pixels were
    compressed with loss, or may have been.
    """

    ref: FileRef
    frame: int | None
    position: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    spacing_yx: tuple[float, float]
    thickness: float | None
    spacing_between: float | None
    tilt_degrees: float | None
    series_uid: str
    frame_of_reference: str
    sop_class: str
    modality: str
    acquisition: str
    instance: int | None
    images: int | None
    series_images: int | None
    rescale_type: str
    lossy: bool
    pixels: StoredPixels

    @property
    def normal(self) -> npt.NDArray[np.float64]:
        """Unit normal of the plane: cross product of the row and the column direction (PS3.3 C.7.6.2.1.1)."""
        vector: npt.NDArray[np.float64] = np.cross(self.orientation[:3], self.orientation[3:])
        return vector / np.linalg.norm(vector)

    def __str__(self) -> str:
        return str(self.ref) if self.frame is None else f"{self.ref} frame {self.frame}"


@dataclass(frozen=True, eq=False)
class _Header:
    """Elements of one frame: of its own functional groups, else of the shared ones, else of the data set."""

    elements: Elements
    groups: tuple[Any, ...] = ()

    def get(self, keyword: str) -> Any:
        for group in self.groups:
            for item in group.get(_MACROS.get(keyword, keyword)) or ():
                if keyword in item:
                    return item.get(keyword)
        return self.elements.get(keyword)

    def numbers(self, ref: FileRef, keyword: str, count: int) -> npt.NDArray[np.float64]:
        try:
            numbers = np.array([float(v) for v in self.get(keyword)], dtype=np.float64)
        except (TypeError, ValueError):
            numbers = np.empty(0)
        if numbers.size != count or not np.isfinite(numbers).all():
            raise SourceError("SERIES_TAG", f"{ref}: {keyword} is missing or unusable, expected {count} numbers")
        return numbers

    def number(self, keyword: str) -> float | None:
        value = self.get(keyword)
        return None if value in (None, "") else float(value)

    def count(self, keyword: str) -> int | None:
        try:
            return int(self.get(keyword))
        except (TypeError, ValueError):
            return None  # what only hints at missing slices may be damaged

    def text(self, keyword: str) -> str:
        try:
            return str(self.get(keyword) or "")
        except ValueError:
            return ""  # AcquisitionNumber, an integer string, only hints too


def parse_slices(ref: FileRef, data: bytes) -> list[Slice]:
    """Parse the header of a file: its one slice, or one slice a frame; localizers give none.

    Raises
    ------
    SourceError
        DICOM_…, SERIES_TAG, SERIES_FRAMES or PIXELDATA_BITS.
    """
    with guarded(ref):
        elements = parse(ref, data)
        dataset = elements.dataset
        frames = int(elements.get("NumberOfFrames") or 1)
        if frames > MAX_FRAMES:
            raise SourceError("SERIES_FRAMES", f"{ref}: {frames} frames, expected at most {MAX_FRAMES}")
        grouped = "PerFrameFunctionalGroupsSequence" in dataset
        if not grouped and frames == 1 and str(elements.get("SOPClassUID")) not in ENHANCED_SOP_CLASSES:
            header = _Header(elements)
            return [] if is_localizer(header.get("ImageType")) else [_slice_of(ref, header, 0, 1)]
        shared = tuple(dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
        own = tuple(dataset.get("PerFrameFunctionalGroupsSequence") or ())
        if len(own) != frames:
            raise SourceError(
                "SERIES_FRAMES", f"{ref}: {frames} frames, but functional groups of {len(own)}, expected one a frame"
            )
        headers = [_Header(elements, (group, *shared)) for group in own]
        return [
            _slice_of(ref, header, frame, frames)
            for frame, header in enumerate(headers)
            if not is_localizer(header.get("FrameType")) and not is_localizer(header.get("ImageType"))
        ]


def _is_lossy(header: _Header) -> bool:
    """LossyImageCompression (PS3.3, C.7.6.1.1.5: once 01, always 01); where it is absent, the syntax may allow loss."""
    stated = header.text("LossyImageCompression").strip()
    return stated == "01" or (stated != "00" and header.elements.dataset.file_meta.TransferSyntaxUID in LOSSY_SYNTAXES)


def _slice_of(ref: FileRef, header: _Header, frame: int, frames: int) -> Slice:
    position = header.numbers(ref, "ImagePositionPatient", 3)
    orientation = header.numbers(ref, "ImageOrientationPatient", 6)
    spacing = header.numbers(ref, "PixelSpacing", 2)
    lengths = np.linalg.norm(orientation.reshape(2, 3), axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(orientation[:3] @ orientation[3:]) > 1e-3:
        raise SourceError("SERIES_TAG", f"{ref}: ImageOrientationPatient holds no unit vectors at right angles")
    orientation /= np.repeat(lengths, 3)  # digits cut off would otherwise stretch the spacing
    spacing_yx = shortest_decimal(spacing[0]), shortest_decimal(spacing[1])
    if not all(0 < mm < math.inf for mm in spacing_yx):
        raise SourceError("SERIES_TAG", f"{ref}: PixelSpacing is not positive, expected mm")
    slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
    if slope == 0.0:
        raise SourceError("SERIES_TAG", f"{ref}: RescaleSlope is 0, expected HU per stored value")
    rescale = (1.0 if slope is None else slope, 0.0 if intercept is None else intercept)
    grouped = bool(header.groups)
    return Slice(
        ref=ref,
        frame=frame if grouped else None,
        position=position,
        orientation=orientation,
        spacing_yx=spacing_yx,
        thickness=header.number("SliceThickness"),
        spacing_between=header.number("SpacingBetweenSlices"),
        tilt_degrees=header.number("GantryDetectorTilt"),
        series_uid=header.text("SeriesInstanceUID"),
        frame_of_reference=header.text("FrameOfReferenceUID"),
        sop_class=header.text("SOPClassUID"),
        modality=header.text("Modality"),
        acquisition=header.text("AcquisitionNumber"),
        instance=None if grouped else header.count("InstanceNumber"),
        images=None if grouped else header.count("ImagesInAcquisition"),
        series_images=None if grouped else header.count("NumberOfSeriesRelatedInstances"),
        rescale_type=header.text("RescaleType").strip().upper(),
        lossy=_is_lossy(header),
        pixels=describe_pixels(ref, header.elements, frame, frames, rescale),
    )

"""What DICOM files say before their pixels are read: kind, series, size; the import silences pydicom.

Header text of a patient never enters a message or a log.
"""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.filereader import _read_command_set_elements, _read_file_meta_info

from livprep.cases import FileRef
from livprep.errors import SourceError

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its messages quote raw values of the header
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

MAX_INFLATED_BYTES = 64 << 20
"""Twice the largest slice of 16 bits."""
ENHANCED_SOP_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
}
"""Enhanced CT, legacy converted enhanced CT: many frames a file, described by functional groups."""
CT_SOP_CLASSES = {"1.2.840.10008.5.1.4.1.1.2", *ENHANCED_SOP_CLASSES}
LOSSY_SYNTAXES = {f"1.2.840.10008.1.2.4.{last}" for last in (50, 51, 81, 91, 93, 203)}
"""JPEG baseline and extended, JPEG-LS near-lossless, JPEG 2000 and HTJ2K where loss is allowed (PS3.5, 8.2 and A.4)."""
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_LONG_FORM = (b"OB", b"OW", b"UN", b"SQ", b"UT")
_FIRST_VRS = {b"UL", b"OB", b"UI", b"CS", b"SH", b"DA", b"TM", b"LO", b"DT"}
DICOM_START_BYTES = 132
"""Preamble and DICM (PS3.10, 7.1)."""


@contextmanager
def guarded(ref: FileRef) -> Iterator[None]:
    """Turn whatever pydicom raises on damaged bytes into DICOM_UNREADABLE, and silence its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values
            yield
    except (SourceError, MemoryError):
        raise
    except InvalidDicomError as error:
        raise SourceError("DICOM_UNREADABLE", f"{ref}: no DICOM file (preamble and DICM missing)") from error
    except Exception as error:  # pydicom raises almost anything
        raise SourceError("DICOM_UNREADABLE", f"{ref}: damaged DICOM ({type(error).__name__})") from None


def is_localizer(image_type: Any) -> bool:
    """Whether ImageType or FrameType names a scout view (value 3, PS3.3 C.8.2.1.1.1); some write it elsewhere."""
    values = [image_type] if isinstance(image_type, str) else image_type or ()
    return any(str(value).strip().upper() in ("LOCALIZER", "SCOUT") for value in values)


def check_expansion(ref: FileRef, data: bytes) -> None:
    """Refuse a deflated data set that inflates beyond any slice, before it fills the memory (PS3.5, A.5).

    pydicom inflates as soon as it has read the file meta information (PS3.10, 7.1), so that is read here first, and
    by its own functions: another reader of ours could find another syntax in a hostile file, or another begin.
    """
    if _DEFLATED.encode() not in data:
        return
    stream = io.BytesIO(data)
    stream.seek(DICOM_START_BYTES)
    if _read_file_meta_info(stream).get("TransferSyntaxUID") != _DEFLATED:
        return
    _read_command_set_elements(stream)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(data[stream.tell() :], MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise SourceError("DICOM_SYNTAX", f"{ref}: deflated, and beyond {MAX_INFLATED_BYTES} bytes")


def is_dicom(data: bytes) -> bool:
    """Whether bytes begin like a DICOM file (PS3.10: 128 bytes of preamble, then DICM)."""
    return data[128:132] == b"DICM"


def begins_like_dicom(data: bytes) -> bool:
    """Whether bytes begin like a DICOM file, or like a data set without preamble: with group 0002 or 0008.

    Old archives and programs store data sets so. The element and its length, or VR, must be such as stand there.
    """
    if is_dicom(data):
        return True
    group, element, coded = data[:2], int.from_bytes(data[2:4], "little"), data[4:8]
    if len(coded) < 4 or group not in (b"\2\0", b"\x08\0") or element > 0x70:
        return False
    return coded[:2] in _FIRST_VRS or int.from_bytes(coded, "little") in range(0, 129, 2)


def with_preamble(data: bytes) -> bytes:
    """A data set that lies in its file without a preamble (PS3.10, 7.1), with one; all else as it is."""
    if is_dicom(data) or not begins_like_dicom(data):
        return data
    if data.startswith(b"\2\0"):
        return bytes(128) + b"DICM" + data
    syntax = b"1.2.840.10008.1.2.1\0" if data[4:6] in _FIRST_VRS else b"1.2.840.10008.1.2\0"
    return bytes(128) + b"DICM\2\0\x10\0UI" + len(syntax).to_bytes(2, "little") + syntax + data


def patient_number(data: bytes) -> int | None:
    """The N of 3DIRCADb's PatientName `liver_NN^patient`, or None; the name itself goes nowhere."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            name = str(
                pydicom.dcmread(io.BytesIO(with_preamble(data)), specific_tags=["PatientName"]).get("PatientName", "")
            )
    except Exception:
        return None
    match = re.fullmatch(r"liver_(\d{1,2})\^patient", name)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class SeriesKey:
    """What groups slices of a folder into series, and what sets them aside.

    Parameters
    ----------
    uid, modality
        Of the header, empty where it has none; a CT image that does not name its modality is CT.
    localizer
        A scout view.
    placed
        Whether it says where it lies; screen captures and protocol pages do not.
    position
        ImagePositionPatient in mm; None where there is none, or one for each frame.
    acquisition, phase
        AcquisitionNumber and TemporalPositionIdentifier, empty where there are none.
    """

    uid: str
    modality: str
    localizer: bool = False
    placed: bool = True
    position: tuple[float, ...] | None = None
    acquisition: str = ""
    phase: str = ""


_PEEKED = [
    "SeriesInstanceUID", "Modality", "Rows", "ImageType", "SOPClassUID", "ImagePositionPatient", "AcquisitionNumber",
    "TemporalPositionIdentifier",
]  # fmt: skip


def peek(ref: FileRef, data: bytes) -> SeriesKey | None:
    """What a file's header says of its series, or None where it is no DICOM image.

    Raises
    ------
    SourceError
        DICOM_UNREADABLE: it begins like a DICOM file but cannot be parsed; DICOM_SYNTAX: it inflates too far.
    """
    if not begins_like_dicom(data):
        return None
    data = with_preamble(data)
    with guarded(ref):
        check_expansion(ref, data)
        header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=_PEEKED)
        sop_class = str(header.get("SOPClassUID") or "")
        is_ct = sop_class in CT_SOP_CLASSES
        if header.get("Rows") is None:
            if is_ct or str(header.file_meta.get("MediaStorageSOPClassUID")) in CT_SOP_CLASSES:
                raise SourceError("DICOM_UNREADABLE", f"{ref}: a CT image without Rows, cut or damaged")
            return None
        return SeriesKey(
            str(header.get("SeriesInstanceUID") or ""),
            str(header.get("Modality") or ("CT" if is_ct else "")),
            localizer=is_localizer(header.get("ImageType")),
            placed="ImagePositionPatient" in header
            or not (sop_class.startswith(_SECONDARY_CAPTURE) or _is_page(header.get("ImageType"))),
            position=_position(header),
            acquisition=_text(header, "AcquisitionNumber"),
            phase=_text(header, "TemporalPositionIdentifier"),
        )


def _is_page(image_type: Any) -> bool:
    """Whether ImageType says that the pixels are text: Siemens stores the protocol as a CT image (CT_SOM5 PROT)."""
    values = [image_type] if isinstance(image_type, str) else image_type or ()
    return any(str(value).strip().upper().endswith(" PROT") for value in values)


def _position(header: Any) -> tuple[float, ...] | None:
    """Where the slice lies, if that can be told; what is wrong with it is for the reader of the series to say."""
    try:
        position = tuple(float(value) for value in header.get("ImagePositionPatient") or ())
    except (TypeError, ValueError):
        return None
    return position if len(position) == 3 and all(map(math.isfinite, position)) else None


def _text(header: Any, keyword: str) -> str:
    try:
        return str(header.get(keyword) or "")
    except ValueError:
        return ""

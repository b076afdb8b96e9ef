"""What DICOM files say before their pixels are read: kind, series, size; the import silences pydicom.

Header text of a patient never enters a message or a log.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
import zlib
from dataclasses import dataclass

import pydicom

from livprep.cases import FileRef
from livprep.errors import SourceError

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its messages quote raw values of the header
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

MAX_INFLATED_BYTES = 64 << 20
"""Twice the largest slice of 16 bits."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_LONG_FORM = (b"OB", b"OW", b"UN", b"SQ", b"UT")


def check_expansion(ref: FileRef, data: bytes) -> None:
    """Refuse a deflated data set that inflates beyond any slice, before it fills the memory (PS3.5, A.5).

    The file meta information is walked by hand (PS3.10, 7.1: explicit VR little endian), as pydicom inflates first.
    """
    position, syntax = 132, b""
    while data[position : position + 2] == b"\2\0":
        tag, vr = data[position + 2 : position + 4], data[position + 4 : position + 6]
        start, size = (
            (12, data[position + 8 : position + 12]) if vr in _LONG_FORM else (8, data[position + 6 : position + 8])
        )
        value = slice(position + start, position + start + int.from_bytes(size, "little"))
        if tag == b"\x10\0":
            syntax = data[value].strip(b"\0 ")
        position = value.stop
    if syntax == _DEFLATED:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        stream.decompress(data[position:], MAX_INFLATED_BYTES)
        if not stream.unconsumed_tail:
            return
    elif _DEFLATED not in data[:4096]:
        return
    raise SourceError("DICOM_SYNTAX", f"{ref}: deflated, and beyond {MAX_INFLATED_BYTES} bytes or in a damaged header")


def is_dicom(data: bytes) -> bool:
    """Whether bytes begin like a DICOM file (PS3.10: 128 bytes of preamble, then DICM)."""
    return data[128:132] == b"DICM"


def patient_number(data: bytes) -> int | None:
    """The N of 3DIRCADb's PatientName `liver_NN^patient`, or None; the name itself goes nowhere."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            name = str(pydicom.dcmread(io.BytesIO(data), specific_tags=["PatientName"]).get("PatientName", ""))
    except Exception:
        return None
    match = re.fullmatch(r"liver_(\d{1,2})\^patient", name)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class SeriesKey:
    """What groups slices of a folder into series."""

    uid: str
    modality: str


def peek(ref: FileRef, data: bytes) -> SeriesKey | None:
    """Series UID and modality of a file's header, or None where it is no DICOM image.

    Raises
    ------
    SourceError
        DICOM_UNREADABLE: it begins like a DICOM file but cannot be parsed; DICOM_SYNTAX: it inflates too far.
    """
    if not is_dicom(data):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_expansion(ref, data)
            tags = ["SeriesInstanceUID", "Modality", "Rows"]
            header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=tags)
            if header.get("Rows") is None:
                return None
            return SeriesKey(str(header.get("SeriesInstanceUID") or ""), str(header.get("Modality") or ""))
    except SourceError:
        raise
    except Exception as error:
        raise SourceError("DICOM_UNREADABLE", f"{ref}: damaged DICOM ({type(error).__name__})") from None

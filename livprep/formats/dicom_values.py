"""The elements of one DICOM file, read from their raw bytes.

pydicom makes an object of several layers of each element that is looked at, and copies the pixel data; both cost
more than all the rest of reading a slice. The few elements that a reader of CT needs are short numbers and words,
mostly the same in all slices, and the pixels can stay where they are.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from livprep.cases import FileRef
from livprep.formats.dicom_header import DICOM_START_BYTES, check_expansion, is_dicom, with_preamble

_PLAIN = {b"1.2.840.10008.1.2": True, b"1.2.840.10008.1.2.1": False}
"""Transfer syntaxes of little endian values that are not compressed, and whether their VR is implicit (PS3.5, A)."""
_LONG_FORM = (b"OB", b"OW", b"UN", b"SQ", b"UT")
_PIXEL_DATA = 0x7FE00010
_GROUPS = {0x52009229, 0x52009230}
"""Shared and per-frame functional groups."""
_LONG_BYTES = 4096
_UNDEFINED = 0xFFFFFFFF
_WORDS = {"CS", "UI", "SH", "LO"}
_WHOLE = {"US": (2, False), "SS": (2, True), "UL": (4, False), "SL": (4, True)}
_KNOWN = {"DS", "IS", *_WORDS, *_WHOLE}


@functools.cache
def _entry(keyword: str) -> tuple[int, str]:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return int(tag), dictionary_VR(tag)


class Elements:
    """The elements of a data set, by keyword.

    Parameters
    ----------
    dataset
        As parsed; what needs more than a look at its bytes is left to it.
    file
        The file's bytes, where the pixel data was left there by the parser.
    """

    def __init__(self, dataset: Any, file: bytes = b"") -> None:
        self.dataset = dataset
        self._by_tag = {int(tag): element for tag, element in dataset.items()}
        self._file = file

    def get(self, keyword: str) -> Any:
        """Value of an element as `dataset.get(keyword)` gives it, several values as a tuple; None where it is empty.

        Raises
        ------
        ValueError
            The bytes are no value of the element's kind (PS3.5, 6.2).
        """
        tag, usual = _entry(keyword)
        element = self._by_tag.get(tag)
        if element is None:
            return None
        if not isinstance(element, RawDataElement):
            return element.value
        kind = element.VR or usual
        if kind not in _KNOWN or not isinstance(element.value, bytes):
            return self.dataset.get(keyword)
        return _parse(kind, element.value, element.is_little_endian)

    @property
    def pixel_data(self) -> memoryview | None:
        """Bytes of the pixel data as far as the file holds them; None where there is none."""
        element = self._by_tag.get(_PIXEL_DATA)
        if element is None:
            return None
        if element.value is None and isinstance(element, RawDataElement) and self._file:
            return memoryview(self._file)[element.value_tell : element.value_tell + element.length]
        return None if element.value is None else memoryview(element.value)

    @property
    def pixel_words(self) -> bool:
        """Whether the pixel data travels as words of 16 bits (PS3.5, 8.1.1)."""
        return bool(self._by_tag[_PIXEL_DATA].VR == "OW")

    def release(self) -> None:
        """Give the memory of the pixel data back."""
        self._file = b""
        self._by_tag.pop(_PIXEL_DATA, None)
        if _PIXEL_DATA in self.dataset:
            del self.dataset[_PIXEL_DATA]


def file_meta(data: bytes) -> tuple[bytes, int]:
    """Transfer syntax of a file, and where its data set begins (PS3.10, 7.1: explicit VR little endian).

    Only a plain syntax that is found here is acted upon; all else is left to pydicom's own reading.
    """
    position, syntax = DICOM_START_BYTES, b""
    while data[position : position + 2] == b"\2\0":
        tag, vr = data[position + 2 : position + 4], data[position + 4 : position + 6]
        start, size = (
            (12, data[position + 8 : position + 12]) if vr in _LONG_FORM else (8, data[position + 6 : position + 8])
        )
        value = slice(position + start, position + start + int.from_bytes(size, "little"))
        if tag == b"\x10\0":
            syntax = data[value].strip(b"\0 ")
        position = value.stop
    return syntax, position


def parse(ref: FileRef, data: bytes) -> Elements:
    """Parse a file's elements; pixel data that is not compressed stays in `data`.

    Raises
    ------
    SourceError
        DICOM_SYNTAX: a deflated data set beyond any slice.
    Exception
        Whatever pydicom raises on damaged bytes.
    """
    data = with_preamble(data)
    syntax, start = file_meta(data)
    implicit = _PLAIN.get(syntax)
    if implicit is None or not is_dicom(data):
        return _parse_by_pydicom(ref, data)
    stream = io.BytesIO(data)
    stream.seek(start)
    dataset = read_dataset(stream, implicit, True, defer_size=_LONG_BYTES)
    dataset.file_meta = _meta(syntax)
    for tag in _GROUPS & dataset.keys():  # long as they are, they are no pixels
        raw = dataset.get_item(tag, keep_deferred=True)
        if isinstance(raw, RawDataElement) and raw.value is None and raw.length != _UNDEFINED:
            dataset[tag] = raw._replace(value=data[raw.value_tell : raw.value_tell + raw.length])
    elements = Elements(dataset, data)
    plain = elements.dataset.get_item(_PIXEL_DATA, keep_deferred=True)
    if plain is not None and plain.length == _UNDEFINED:  # not allowed here (PS3.5, A.4), but seen
        return _parse_by_pydicom(ref, data)
    return elements


def _parse_by_pydicom(ref: FileRef, data: bytes) -> Elements:
    check_expansion(ref, data)
    dataset = pydicom.dcmread(io.BytesIO(data))
    if "TransferSyntaxUID" not in dataset.file_meta:  # required, but some leave it out; pydicom tried what fits
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        )
    return Elements(dataset)


@functools.cache
def _meta(syntax: bytes) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax.decode("ascii"))
    return meta


@functools.lru_cache(maxsize=4096)
def _parse(kind: str, value: bytes, little_endian: bool) -> Any:
    values: list[Any]
    if kind in _WHOLE:
        size, signed = _WHOLE[kind]
        order = "little" if little_endian else "big"
        if len(value) % size:
            raise ValueError("a value of another length than its kind has")
        pieces = [value[start : start + size] for start in range(0, len(value), size)]
        values = [int.from_bytes(piece, order, signed=signed) for piece in pieces]  # type: ignore[arg-type]
    else:
        texts = [text.strip(" \0") for text in value.decode("latin-1").split("\\")]
        if texts == [""]:
            return None
        values = texts if kind in _WORDS else [_number(text, whole=kind == "IS") for text in texts]
    return values[0] if len(values) == 1 else tuple(values) or None


def _number(text: str, *, whole: bool) -> float | int | None:
    if not text:
        return None
    number = float(text)
    if not whole:
        return number
    if not number.is_integer():
        raise ValueError("an integer string that is no integer")
    return int(number)

"""Values of single elements, read from their raw bytes.

pydicom makes an object of several layers of each element that is looked at, which costs more than reading a slice.
The few elements that a reader of CT needs are short numbers and words, and mostly the same in all slices.
"""

from __future__ import annotations

import functools
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement

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
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._by_tag = {int(tag): element for tag, element in dataset.items()}

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

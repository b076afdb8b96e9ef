"""A minimal writer of single-frame DICOM files: explicit VR little endian, uncompressed, monochrome.

It exists for synthetic data, whose headers repeat a data set's quirks to the letter (decimal strings longer than the
standard's 16 characters, empty elements, no frame of reference); a validating writer refuses some of them. Encoding
follows DICOM PS3.5, 7.1.2, and PS3.10, 7.1.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_LONG_FORM = frozenset({"OB", "OW", "UN", "SQ", "UT"})
_ZERO_PADDED = frozenset({"UI", "OB"})

Tag = tuple[int, int]
Element = tuple[str, str | int]
"""Value representation and value; a number for US, text for all others."""


def uid_from(*words: object) -> str:
    """Make a UID that follows from the words alone: 2.25 and a name-based UUID (PS3.5, B.2)."""
    digest = hashlib.sha256("\n".join(map(str, words)).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


_IMPLEMENTATION_UID = uid_from("livprep", "dicom_write")


def encode_element(tag: Tag, vr: str, value: bytes) -> bytes:
    """Encode one element; odd values are padded as the value representation asks."""
    if len(value) % 2:
        value += b"\0" if vr in _ZERO_PADDED else b" "
    head = struct.pack("<HH2s", *tag, vr.encode("ascii"))
    length = struct.pack("<HI", 0, len(value)) if vr in _LONG_FORM else struct.pack("<H", len(value))
    return head + length + value


def _encode(elements: Mapping[Tag, Element]) -> bytes:
    return b"".join(
        encode_element(tag, vr, struct.pack("<H", value) if isinstance(value, int) else value.encode("ascii"))
        for tag, (vr, value) in sorted(elements.items())
    )


@dataclass(frozen=True)
class SeriesHeader:
    """Elements that all slices of a series share, by tag; pixel description, UIDs and pixels are added."""

    elements: Mapping[Tag, Element] = field(default_factory=dict)
    sop_class_uid: str = CT_IMAGE_STORAGE

    def slice_bytes(
        self, sop_instance_uid: str, elements: Mapping[Tag, Element], pixels: npt.NDArray[np.generic]
    ) -> bytes:
        """Encode one slice as a DICOM file.

        Parameters
        ----------
        sop_instance_uid
            Identifier of this slice.
        elements
            What belongs to this slice alone, e.g. its position.
        pixels
            `(rows, columns)` int16 or uint8; int16 is described as signed.
        """
        if pixels.dtype not in (np.dtype(np.int16), np.dtype(np.uint8)) or pixels.ndim != 2:
            raise TypeError(f"pixels: found {pixels.dtype} {pixels.shape}, expected 2-D int16 or uint8")
        bits = 8 * pixels.dtype.itemsize
        own: dict[Tag, Element] = {
            (0x0008, 0x0016): ("UI", self.sop_class_uid),
            (0x0008, 0x0018): ("UI", sop_instance_uid),
            (0x0028, 0x0002): ("US", 1),
            (0x0028, 0x0004): ("CS", "MONOCHROME2"),
            (0x0028, 0x0010): ("US", pixels.shape[0]),
            (0x0028, 0x0011): ("US", pixels.shape[1]),
            (0x0028, 0x0100): ("US", bits),
            (0x0028, 0x0101): ("US", bits),
            (0x0028, 0x0102): ("US", bits - 1),
            (0x0028, 0x0103): ("US", int(pixels.dtype == np.int16)),
        }
        data = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).tobytes()
        body = _encode({**self.elements, **own, **elements})
        return (
            self._preamble(sop_instance_uid)
            + body
            + encode_element((0x7FE0, 0x0010), "OW" if bits == 16 else "OB", data)
        )

    def _preamble(self, sop_instance_uid: str) -> bytes:
        meta = encode_element((0x0002, 0x0001), "OB", b"\0\1") + _encode(
            {
                (0x0002, 0x0002): ("UI", self.sop_class_uid),
                (0x0002, 0x0003): ("UI", sop_instance_uid),
                (0x0002, 0x0010): ("UI", EXPLICIT_VR_LITTLE_ENDIAN),
                (0x0002, 0x0012): ("UI", _IMPLEMENTATION_UID),
                (0x0002, 0x0013): ("SH", "LIVPREP"),
            }
        )
        return bytes(128) + b"DICM" + encode_element((0x0002, 0x0000), "UL", struct.pack("<I", len(meta))) + meta

"""Stored values of one DICOM frame and the way from them to int16 HU; decoding happens when asked for, not before."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom._uid_dict import UID_dictionary
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder, pixel_array

from livprep.cases import FileRef
from livprep.errors import SourceError
from livprep.formats.dicom_header import guarded
from livprep.formats.dicom_values import Elements

MAX_SIDE = 4096
_RLE = "1.2.840.10008.1.2.5"
_RLE_FREE_BYTES = 64 << 20

IntArray = npt.NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class StoredPixels:
    """Pixel data of one frame, still as stored; what describes them has been checked.

    Parameters
    ----------
    ref
        File, for messages.
    elements
        Parsed file that holds the values.
    frame, frames
        Index of this frame from 0, and how many the file holds.
    rows, columns
        Size of the frame in pixels.
    bits, bits_stored, high_bit
        Bits a pixel takes, bits of them that are the value, and the highest of those (PS3.5, 8.1.1).
    signed
        Whether values are two's complement.
    rescale
        Slope and intercept: HU = stored x slope + intercept (PS3.3, C.11.1.1.2).
    padding
        Lowest and highest stored value that stand for "no pixel", or None (PS3.3, C.7.5.1.1.2).
    """

    ref: FileRef
    elements: Elements
    frame: int
    frames: int
    rows: int
    columns: int
    bits: int
    bits_stored: int
    high_bit: int
    signed: bool
    rescale: tuple[float, float]
    padding: tuple[int, int] | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.columns

    @property
    def padding_hu(self) -> float | None:
        """The HU that padding becomes; it is never changed."""
        return None if self.padding is None else self.padding[0] * self.rescale[0] + self.rescale[1]

    def decode(self, out: IntArray) -> int:
        """Write int16 HU into `out` `(rows, columns)`; return how many pixels of them are padding.

        Raises
        ------
        SourceError
            PIXELDATA_…, DICOM_SYNTAX or HU_RANGE.
        """
        with guarded(self.ref):
            stored = self._stored()
            low, high = self.padding or (1, 0)
            padded = int(np.count_nonzero((stored >= low) & (stored <= high))) if low <= high else 0
            self._rescale(stored, out)
            return padded

    def values(self) -> npt.NDArray[Any]:
        """Rescaled values `(rows, columns)`, the stored ones themselves where the rescale leaves them as they are."""
        with guarded(self.ref):
            stored = self._stored()
            if self.rescale == (1.0, 0.0):
                return stored
            out = np.empty(self.shape, dtype=np.int16)
            self._rescale(stored, out)
            return out

    @property
    def stored_bytes(self) -> int:
        """Size of the pixel data of the whole file; 0 where it has none."""
        with guarded(self.ref):
            return len(self.elements.pixel_data or b"")

    def release(self) -> None:
        """Give the memory of a decoded slice back; the frames of one file go together with their series."""
        if self.frames == 1:
            self.elements.release()

    def _stored(self) -> npt.NDArray[Any]:
        syntax = self.elements.dataset.file_meta.TransferSyntaxUID
        data: Any = self.elements.pixel_data
        if data is None:
            raise SourceError("PIXELDATA_MISSING", f"{self.ref}: has no pixel data")
        if syntax.is_compressed:
            values = self._decompress()
            return self._value_bits(values) if syntax == _RLE else values  # all others code values, not words
        size = self.rows * self.columns * self.bits // 8
        if len(data) < size * self.frames:
            raise SourceError(
                "PIXELDATA_SHORT", f"{self.ref}: holds {len(data)} pixel bytes, expected {size * self.frames}"
            )
        kind = f"{'<' if syntax.is_little_endian else '>'}{'i' if self.signed else 'u'}{self.bits // 8}"
        if self.bits == 8 and not syntax.is_little_endian and self.elements.pixel_words:
            data = np.frombuffer(data, "u2", len(data) // 2).byteswap().tobytes()  # bytes travel as swapped words
        values = np.frombuffer(data, kind, self.rows * self.columns, offset=size * self.frame)
        return self._value_bits(values.reshape(self.shape))

    def _value_bits(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Drop what lies above and below the stored bits (PS3.5, 8.1.1); the way back extends the sign."""
        above, unused = self.bits - 1 - self.high_bit, self.bits - self.bits_stored
        return (values << above) >> unused if unused else values

    def _decompress(self) -> npt.NDArray[Any]:
        syntax = self.elements.dataset.file_meta.TransferSyntaxUID
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise SourceError(
                "DICOM_SYNTAX",
                f"{self.ref}: pixel data in {_name(syntax)} cannot be decoded; install the extra livprep[codecs]",
            )
        self._check_frame(syntax)
        try:
            values: npt.NDArray[Any] = pixel_array(self.elements.dataset, index=self.frame)
        except Exception as error:  # decoders raise almost anything on damaged bytes
            raise SourceError(
                "PIXELDATA_CODEC", f"{self.ref}: damaged {_name(syntax)} ({type(error).__name__})"
            ) from None
        if values.shape != self.shape:
            raise SourceError("PIXELDATA_SHORT", f"{self.ref}: decodes to {values.shape}, expected {self.shape}")
        return values

    def _check_frame(self, syntax: Any) -> None:
        """Compare what the compressed frame says of its size with the header, before a decoder makes room for it."""
        frame = get_frame(self.elements.dataset.PixelData, self.frame, number_of_frames=self.frames)
        if syntax == _RLE:
            # A run of two bytes makes up to 128; a damaged or hostile segment is decoded to its end all the same.
            if 64 * len(frame) > max(_RLE_FREE_BYTES, 64 * (self.rows * self.columns * self.bits // 8 + 512)):
                raise SourceError(
                    "PIXELDATA_CODEC", f"{self.ref}: {len(frame)} bytes of RLE are no {self.shape} pixels"
                )
            return
        stated = codestream_size(frame)
        if stated is not None and stated != (*self.shape, 1):
            raise SourceError(
                "PIXELDATA_CODEC",
                f"{self.ref}: the compressed frame has {stated} rows, columns and samples, expected {(*self.shape, 1)}",
            )

    def _rescale(self, stored: npt.NDArray[Any], out: IntArray) -> None:
        slope, intercept = self.rescale
        if stored.dtype.kind in "iu" and slope == 1.0 and intercept.is_integer() and abs(intercept) < 1 << 15:
            self._check_range(float(stored.min()) + intercept, float(stored.max()) + intercept)
            out[...] = stored  # may wrap around; the sum wraps back, as it fits
            out += np.int16(intercept)
            return
        values = np.rint(stored.astype(np.float64) * slope + intercept)
        self._check_range(float(values.min()), float(values.max()))
        out[...] = values

    def _check_range(self, low: float, high: float) -> None:
        if not (low >= -32768 and high <= 32767):  # so that NaN is refused too
            raise SourceError("HU_RANGE", f"{self.ref}: HU {low:g} to {high:g} do not fit int16")


def _name(syntax: Any) -> str:
    """Name of a transfer syntax of the standard; anything else is text from outside."""
    return str(syntax.name) if syntax in UID_dictionary else "an unknown transfer syntax"


def codestream_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and samples that a JPEG, JPEG-LS or JPEG 2000 frame states; None where it does not begin so.

    JPEG 2000 states them in SIZ (ISO 15444-1, A.5.1), the others in SOF0 ... SOF15 or SOF55 (ISO 10918-1, B.2.2;
    ISO 14495-1, C.2.2).
    """
    box = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # some writers keep the boxes of a JP2 file around it
    if box >= 0 and not frame.startswith(b"\xff\xd8"):
        siz = frame[box + 8 : box + 42]
        if len(siz) < 34:
            return 0, 0, 0
        width, height, left, top = struct.unpack(">4I", siz[:16])
        return height - top, width - left, int.from_bytes(siz[32:34], "big")
    position = 2
    while frame.startswith(b"\xff\xd8") and position + 9 < len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            height, width, samples = struct.unpack(">HHB", frame[position + 5 : position + 10])
            return height, width, samples
        position += 1 if marker == 0xFF else 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return None


def describe_pixels(
    ref: FileRef, elements: Elements, frame: int, frames: int, rescale: tuple[float, float]
) -> StoredPixels:
    """Check what a header says of its pixels.

    Raises
    ------
    SourceError
        SERIES_TAG: sizes, samples or bits that cannot be.
    """
    rows, columns = int(elements.get("Rows") or 0), int(elements.get("Columns") or 0)
    bits = int(elements.get("BitsAllocated") or 0)
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise SourceError("SERIES_TAG", f"{ref}: {rows} x {columns} pixels, expected 1 to {MAX_SIDE} a side")
    if int(elements.get("SamplesPerPixel") or 1) != 1 or bits not in (8, 16):
        raise SourceError("SERIES_TAG", f"{ref}: expected one sample of 8 or 16 bits a pixel, found {bits} bits")
    bits_stored = int(elements.get("BitsStored") or bits)
    high = elements.get("HighBit")
    high_bit = bits_stored - 1 if high in (None, "") else int(high)
    if not 0 < bits_stored <= high_bit + 1 <= bits:
        raise SourceError(
            "PIXELDATA_BITS",
            f"{ref}: {bits_stored} bits up to bit {high_bit} of {bits}, expected them to fit",
        )
    signed = bool(int(elements.get("PixelRepresentation") or 0))
    return StoredPixels(
        ref, elements, frame, frames, rows, columns, bits, bits_stored, high_bit, signed, rescale,
        _padding(elements, bits, signed=signed),
    )  # fmt: skip


def _padding(elements: Elements, bits: int, *, signed: bool) -> tuple[int, int] | None:
    value, limit = elements.get("PixelPaddingValue"), elements.get("PixelPaddingRangeLimit")
    try:
        ends = [int(v) for v in (value, value if limit in (None, "") else limit)]
    except (TypeError, ValueError):
        return None
    top = 1 << (bits - 1)
    if signed:  # some writers give it as an unsigned number
        ends = [end - 2 * top if end >= top else end for end in ends]
    return min(ends), max(ends)

"""Damage to bytes that follows from a number: flips, cuts, moved blocks, odd numbers in known fields, splices.

The same reader and number give the same input on every machine, so a failing one is run again alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

INTEGERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 4096, 4097, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31,
            2**32 - 2, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-40, 1e-30, 1e-3, 351.0, 353.0, 1e6, 1e30, 3.4e38, -3.4e38, float("inf"),
          float("-inf"), float("nan"))  # fmt: skip
TEXTS = (b"", b"0", b"-0", b"1", b"-1", b"nan", b"inf", b"-inf", b"1e999", b"1e-999", b"1e30", b"0x1", b"1_0", b"\\",
         b"\\\\\\", b"1\\2", b"1\\nan\\0", b"99999999999999999999", b"-32769", b"40000", b"\0", b"\xff\xfe", b"TOKEN",
         b"1\\0\\0\\0\\1\\0", b"../../x", b"/etc/x", b" ", b"+ 1", b"LOCALIZER", b"CT")  # fmt: skip
_BLOCK = 64


@dataclass(frozen=True)
class Field:
    """Where a value of a known kind lies in a base."""

    offset: int
    size: int
    kind: Literal["integer", "float", "text"] = "integer"


@dataclass(frozen=True)
class Base:
    """A valid input.

    Parameters
    ----------
    name
        Its form, for messages.
    data
        Its bytes, before `pack`.
    fields
        Where values lie that a reader acts upon.
    pack
        Turns damaged bytes into the input, e.g. compresses them, so that damage lies below a checksum.
    """

    name: str
    data: bytes
    fields: tuple[Field, ...] = ()
    pack: Callable[[bytes], bytes] | None = None
    odd_texts: Sequence[bytes] = TEXTS


def mutated(reader: str, bases: Sequence[Base], number: int) -> tuple[Base, bytes]:
    """Input `number` of a reader: one of its bases, damaged in one to four places."""
    rng = Random(f"{reader} {number}")
    base = rng.choice(bases)
    data, packed = bytearray(base.data), base.pack is None
    if base.pack is not None and rng.random() < 0.25:
        data, packed = bytearray(base.pack(base.data)), True
    known = base.fields if base.pack is None or not packed else ()
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        if known and rng.random() < 0.6:
            _odd_value(data, rng.choice(known), base.odd_texts, rng)
        else:
            rng.choice(_DAMAGES)(data, rng)
    if rng.random() < 0.05:
        _splice(data, rng.choice(bases).data, rng)
    return base, bytes(data) if packed or base.pack is None else base.pack(bytes(data))


def _odd_value(data: bytearray, field: Field, texts: Sequence[bytes], rng: Random) -> None:
    if field.kind == "text":
        value = rng.choice(texts)
        if rng.random() < 0.5:
            value = value.ljust(field.size)[: field.size]
    elif field.kind == "float" and rng.random() < 0.8:
        value = struct.pack(rng.choice("<>") + ("f" if field.size == 4 else "d"), rng.choice(FLOATS))
    else:
        number = rng.choice(INTEGERS) + rng.choice((0, 0, 0, 1, -1, rng.randrange(16)))
        value = (number % (1 << 8 * field.size)).to_bytes(field.size, rng.choice(("little", "little", "big")))
    data[field.offset : field.offset + field.size] = value


def _flip(data: bytearray, rng: Random) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 8)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _bytes(data: bytearray, rng: Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 4)) if data else 0):
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))


def _integer(data: bytearray, rng: Random) -> None:
    size = rng.choice((2, 4, 4, 8))
    _odd_value(data, Field(rng.randrange(len(data) + 1), size), (), rng)


def _truncate(data: bytearray, rng: Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _block(data: bytearray, rng: Random) -> slice:
    start = rng.randrange(len(data) + 1)
    return slice(start, start + rng.choice((1, 2, 4, 8, rng.randrange(1, _BLOCK), rng.randrange(1, 1024))))


def _delete(data: bytearray, rng: Random) -> None:
    del data[_block(data, rng)]


def _zero(data: bytearray, rng: Random) -> None:
    block = _block(data, rng)
    data[block] = bytes([rng.choice((0, 0, 0xFF))]) * len(data[block])


def _duplicate(data: bytearray, rng: Random) -> None:
    piece = data[_block(data, rng)] * rng.choice((1, 1, 2, 30))
    at = rng.randrange(len(data) + 1)
    data[at:at] = piece


def _swap(data: bytearray, rng: Random) -> None:
    piece, other = data[(block := _block(data, rng))], data[(there := _block(data, rng))]
    data[block], data[there] = other, piece


def _random(data: bytearray, rng: Random) -> None:
    block = _block(data, rng)
    data[block] = rng.randbytes(len(data[block]))


def _splice(data: bytearray, other: bytes, rng: Random) -> None:
    """The begin of one valid input and the end of another, cut at about the same place or anywhere."""
    at = rng.randrange(len(data) + 1)
    there = at if rng.random() < 0.5 else rng.randrange(len(other) + 1)
    data[at:] = other[there:]


_DAMAGES = (_flip, _flip, _bytes, _bytes, _integer, _integer, _truncate, _delete, _zero, _duplicate, _swap, _random)

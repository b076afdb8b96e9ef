"""Loads, copies and calls on plain addresses, for which numba has no words.

What stands here is machine code in the caller's cached code, but numba's cache watches only the file of the function
that it holds: after a change here, change kernels.py too, or delete its cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from llvmlite import ir
from numba import int32, int64, njit, uint32
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Voxels that are put together at once from their low and high bytes."""

_Function = TypeVar("_Function", bound=Callable[..., Any])
_BYTE = ir.IntType(8)
_POINTER = _BYTE.as_pointer()


def compiled(signature: Any) -> Callable[[_Function], _Function]:
    """Compile without the GIL; cached on disk where any place for that can be written."""

    def decorate(function: _Function) -> _Function:
        try:
            built: _Function = njit(signature, nogil=True, cache=True)(function)
        except (RuntimeError, OSError):
            built = njit(signature, nogil=True)(function)
        return built

    return decorate


def inlined(function: _Function) -> _Function:
    """Have a function stand in the code of its callers: a call a row costs as much as its copy."""
    built: _Function = njit(nogil=True, inline="always")(function)
    return built


def copier(size: int) -> Any:
    """Copy `size` bytes from address to address: one load, one store."""

    @intrinsic  # type: ignore[untyped-decorator]
    def copy(_: Any, target: Any, source: Any) -> Any:
        def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
            kind = ir.VectorType(_BYTE, size).as_pointer()
            to, of = (builder.inttoptr(argument, kind) for argument in arguments)
            builder.store(builder.load(of, align=1), to, align=1)
            return ir.Constant(ir.IntType(64), 0)

        return int64(int64, int64), generate

    return copy


copy64, copy32, copy16, copy8 = (copier(size) for size in (64, 32, 16, 8))


@intrinsic  # type: ignore[untyped-decorator]
def stream32(_: Any, target: Any, source: Any) -> Any:
    """Copy 32 bytes to an address that is a multiple of 32, past the caches: nothing is fetched to be overwritten.

    Such stores are seen by other threads after the next lock that this one takes or gives.
    """

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        kind = ir.VectorType(_BYTE, 32).as_pointer()
        to, of = (builder.inttoptr(argument, kind) for argument in arguments)
        stored = builder.store(builder.load(of, align=1), to, align=32)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return ir.Constant(ir.IntType(64), 0)

    return int64(int64, int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def copy_byte(_: Any, target: Any, source: Any) -> Any:
    """Copy one byte from address to address."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        to, of = (builder.inttoptr(argument, _POINTER) for argument in arguments)
        builder.store(builder.load(of), to)
        return ir.Constant(ir.IntType(64), 0)

    return int64(int64, int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def join_lanes(_: Any, target: Any, low: Any, high: Any) -> Any:
    """Write `LANES` 16-bit values whose low and high bytes lie at two addresses."""
    short, long = ir.VectorType(_BYTE, LANES), ir.VectorType(ir.IntType(16), LANES)

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        to = builder.inttoptr(arguments[0], long.as_pointer())
        halves = [
            builder.zext(builder.load(builder.inttoptr(argument, short.as_pointer()), align=1), long)
            for argument in arguments[1:]
        ]
        eight = ir.Constant(long, [8] * LANES)
        builder.store(builder.or_(halves[0], builder.shl(halves[1], eight)), to, align=1)
        return ir.Constant(ir.IntType(64), 0)

    return int64(int64, int64, int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def clear(_: Any, target: Any, size: Any) -> Any:
    """Set `size` bytes at an address to 0."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        cgutils.memset(builder, builder.inttoptr(arguments[0], _POINTER), arguments[1], 0)
        return ir.Constant(ir.IntType(64), 0)

    return int64(int64, int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def load32(_: Any, address: Any) -> Any:
    """The little-endian uint32 at an address of any alignment."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(32).as_pointer())
        return builder.load(pointer, align=1)

    return uint32(int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def call_getitem(_: Any, function: Any, source: Any, size: Any, start: Any, items: Any, target: Any, room: Any) -> Any:
    """Call `blosc2_getitem` by address; see native.py."""
    word = ir.IntType(32)
    kind = ir.FunctionType(word, [_POINTER, word, word, word, _POINTER, word])

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        call = builder.inttoptr(arguments[0], kind.as_pointer())
        of, to = (builder.inttoptr(arguments[i], _POINTER) for i in (1, 5))
        counts = [builder.trunc(arguments[i], word) for i in (2, 3, 4, 6)]
        return builder.call(call, [of, *counts[:3], to, counts[3]])

    return int32(*[int64] * 7), generate


@intrinsic  # type: ignore[untyped-decorator]
def call_lz4(_: Any, function: Any, source: Any, target: Any, size: Any, room: Any) -> Any:
    """Call `LZ4_decompress_safe` by address; see native.py."""
    word = ir.IntType(32)
    kind = ir.FunctionType(word, [_POINTER, _POINTER, word, word])

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        call = builder.inttoptr(arguments[0], kind.as_pointer())
        of, to = (builder.inttoptr(arguments[i], _POINTER) for i in (1, 2))
        return builder.call(call, [of, to, *(builder.trunc(arguments[i], word) for i in (3, 4))])

    return int32(*[int64] * 5), generate


@intrinsic  # type: ignore[untyped-decorator]
def call_crc32c(_: Any, function: Any, address: Any, size: Any) -> Any:
    """Call `crc32c_extend` by address; see native.py."""
    word, long = ir.IntType(32), ir.IntType(64)
    kind = ir.FunctionType(word, [word, _POINTER, long])

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        call = builder.inttoptr(arguments[0], kind.as_pointer())
        of = builder.inttoptr(arguments[1], _POINTER)
        return builder.call(call, [ir.Constant(word, 0), of, arguments[2]])

    return uint32(int64, int64, int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def call_madvise(_: Any, function: Any, address: Any, size: Any, advice: Any) -> Any:
    """Call `madvise` by address; see native.py."""
    word, long = ir.IntType(32), ir.IntType(64)
    kind = ir.FunctionType(word, [_POINTER, long, word])

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        call = builder.inttoptr(arguments[0], kind.as_pointer())
        of = builder.inttoptr(arguments[1], _POINTER)
        return builder.call(call, [of, arguments[2], builder.trunc(arguments[3], word)])

    return int32(int64, int64, int64, int64), generate

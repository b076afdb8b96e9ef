"""Compressed frames are decoded in a process of their own, with 1 GB of memory and a minute of time.

The decoders of JPEG, JPEG-LS and JPEG 2000 are C and C++ of others: one damaged frame of a few hundred bytes makes
GDCM end the process that it runs in. So that process is not ours; it is started when first needed and stays.

A message is the length of a JSON object (4 bytes, little endian), the object, and as many bytes as its `size` says.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

MEMORY_BYTES = 1 << 30
SECONDS = 60.0
_SERVE = "from livprep.formats.codec_process import serve; serve()"
_lock = threading.Lock()


class CodecError(Exception):
    """A frame cannot be decoded; the text names the kind of error alone."""


class _Codec:
    """The decoding process and whose it is: after a fork it stays the parent's."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self.process = subprocess.Popen(  # noqa: S603 - our own code, in the same interpreter
            [sys.executable, "-P", "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what the decoders remark
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # a signal to us ends it by the end of its input
        )

    def ask(self, request: dict[str, Any], frame: bytes) -> tuple[dict[str, Any], bytes]:
        """Send one frame and wait for its pixels; CodecError where the process ends or takes too long."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        watch = threading.Timer(SECONDS, self.process.kill)
        watch.start()
        try:
            _send(self.process.stdin, request, frame)  # type: ignore[arg-type]
            return _receive(self.process.stdout)  # type: ignore[arg-type]
        except (OSError, EOFError, ValueError):
            raise CodecError("the decoder failed") from None
        finally:
            watch.cancel()

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()


_running: list[_Codec] = []


def decode_frame(
    frame: bytes, syntax: str, shape: tuple[int, int], bits: int, bits_stored: int, *, signed: bool
) -> npt.NDArray[Any]:
    """Stored values `(rows, columns)` of one compressed monochrome frame.

    Raises
    ------
    CodecError
        It is damaged, or its decoder ends, hangs or wants too much memory.
    """
    request = {
        "syntax": syntax, "rows": shape[0], "columns": shape[1], "bits": bits, "stored": bits_stored, "signed": signed,
    }  # fmt: skip
    with _lock:
        if _running and _running[0].owner != os.getpid():
            _running.clear()  # the parent's
        if not _running:
            _running.append(_Codec())
        try:
            answer, data = _running[0].ask(request, frame)
        except BaseException:
            _running.pop().close()
            raise
    if "error" in answer:
        raise CodecError(str(answer["error"]))
    return np.frombuffer(data, np.dtype(answer["dtype"])).reshape(answer["shape"])


@atexit.register
def close() -> None:
    """End the decoding process, if there is one."""
    with _lock:
        while _running:
            _running.pop().close()


def serve() -> None:
    """Decode what comes on standard input until it ends."""
    from livprep.formats import dicom_header  # silences pydicom

    assert dicom_header
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            request, frame = _receive(source)
        except EOFError:
            return
        try:
            values = _decode(request, frame)
        except Exception as error:  # decoders raise almost anything
            _send(target, {"error": type(error).__name__}, b"")
            continue
        _send(target, {"dtype": values.dtype.str, "shape": values.shape}, values.tobytes())


def _decode(request: dict[str, Any], frame: bytes) -> npt.NDArray[Any]:
    import warnings

    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values, _ = get_decoder(request["syntax"]).as_array(
            encapsulate([frame]),
            index=0,
            raw=True,
            rows=request["rows"],
            columns=request["columns"],
            number_of_frames=1,
            samples_per_pixel=1,
            bits_allocated=request["bits"],
            bits_stored=request["stored"],
            pixel_representation=int(request["signed"]),
            photometric_interpretation="MONOCHROME2",
            pixel_keyword="PixelData",
        )
    return np.ascontiguousarray(values)


def _send(target: BinaryIO, message: dict[str, Any], data: bytes) -> None:
    head = json.dumps({**message, "size": len(data)}).encode()
    target.write(len(head).to_bytes(4, "little") + head)
    target.write(data)
    target.flush()


def _receive(source: BinaryIO) -> tuple[dict[str, Any], bytes]:
    message: dict[str, Any] = json.loads(_exactly(source, int.from_bytes(_exactly(source, 4), "little")))
    return message, _exactly(source, message["size"])


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise EOFError
    return data

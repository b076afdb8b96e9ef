"""Frames are decoded by a process of their own, whose end is not ours."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from livprep.formats import codec_process
from livprep.formats.codec_process import CodecError, close, decode_frame

JPEG_2000 = "1.2.840.10008.1.2.4.90"
PIXELS = np.arange(256, dtype=np.uint16).reshape(16, 16)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    close()
    yield
    close()


def coded() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG2000", no_jp2=True, irreversible=False)
    return buffer.getvalue()


def decoded(frame: bytes) -> np.ndarray:
    return decode_frame(frame, JPEG_2000, (16, 16), 16, 16, signed=False)


def test_frames_come_back_from_one_process() -> None:
    for _ in range(3):
        np.testing.assert_array_equal(decoded(coded()), PIXELS)
    process = codec_process._running[0].process
    close()
    assert process.poll() is not None


def test_a_damaged_frame_is_an_error_and_the_next_is_read() -> None:
    with pytest.raises(CodecError):
        decoded(coded()[:100])
    np.testing.assert_array_equal(decoded(coded()), PIXELS)


@pytest.mark.parametrize(
    "serve",
    [
        "import os; os.abort()",
        "import sys; sys.stdin.buffer.read(10); import os; os._exit(0)",
        "import time; time.sleep(60)",
        "print('no message at all' * 1000)",
        "import sys; sys.stdout.buffer.write((4).to_bytes(4, 'little') + b'nil?'); sys.stdout.flush()",
    ],
)
def test_a_decoder_that_ends_or_hangs_costs_its_frame_alone(monkeypatch: pytest.MonkeyPatch, serve: str) -> None:
    monkeypatch.setattr(codec_process, "SECONDS", 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(codec_process, "_SERVE", serve)
        with pytest.raises(CodecError, match="the decoder failed"):
            decoded(coded())
        assert not codec_process._running
    monkeypatch.setattr(codec_process, "SECONDS", 60.0)
    np.testing.assert_array_equal(decoded(coded()), PIXELS)


def test_a_process_from_before_a_fork_is_the_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded(coded())
    (codec,) = codec_process._running
    monkeypatch.setattr(codec, "owner", os.getpid() + 1)
    np.testing.assert_array_equal(decoded(coded()), PIXELS)
    assert codec.process.poll() is None
    assert codec_process._running[0] is not codec
    monkeypatch.setattr(codec, "owner", os.getpid())
    codec.close()


def test_memory_of_the_process_is_limited() -> None:
    decoded(coded())
    process = psutil.Process(codec_process._running[0].process.pid)
    soft, _ = process.rlimit(psutil.RLIMIT_AS)
    assert process.memory_info().vms < soft <= process.memory_info().vms + 2 * codec_process.MEMORY_BYTES

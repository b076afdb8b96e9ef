"""Feed a reader its damaged inputs in a process of its own, within memory and time; also by hand.

`PYTHONPATH=tests python tests/faults/mutation_worker.py dicom 4711` reads input 4711 alone, `... dicom 7 9 0:20000`
inputs 7, 9 and all from 0 to 19999; it prints a JSON summary, with a traceback of each failure.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from mutation import mutated
from mutation_readers import READERS, Reader

from livprep.errors import CODES, LivError

MEMORY_BYTES = 1 << 30
SECONDS = 10
_SECRET = "TOKEN"


class Hang(BaseException):
    """An input took too long; no `except Exception` catches it."""


def _hang(signum: int, frame: object) -> None:
    raise Hang


def texts_of(error: BaseException | None) -> str:
    """All that a traceback would print of an error and its causes."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(texts)


def fault_of(attempt: Any) -> tuple[str, str]:
    """Code with which a reading ends, empty where it ends well, and what is wrong with that, mostly nothing."""
    try:
        attempt()
    except LivError as error:
        texts = texts_of(error)
        if error.code not in CODES:
            return error.code, f"unknown code {error.code}"
        return error.code, f"quotes the input: {texts}" if _SECRET in texts else ""
    except BaseException as error:  # also MemoryError and Hang
        return type(error).__name__, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    return "", ""


def run(reader: Reader, numbers: Iterable[int]) -> dict[str, Any]:
    """Read the inputs of `numbers` in every way; what came of them."""
    outcomes: Counter[str] = Counter()
    failures: list[tuple[int, str, str]] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            base, data = mutated(reader.name, reader.bases, number)
            started = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            faulthandler.dump_traceback_later(3 * SECONDS, exit=True)  # a decoder in C does not see the alarm
            for k, attempt in enumerate(reader.attempts(base, data, Path(folder))):
                code, wrong = fault_of(attempt)
                outcomes[code] += k == 0
                if wrong:
                    failures.append((number, base.name, wrong))
            signal.setitimer(signal.ITIMER_REAL, 0)
            slowest = max(slowest, time.monotonic() - started)
    faulthandler.cancel_dump_traceback_later()
    return {"outcomes": outcomes, "failures": failures, "slowest_s": round(slowest, 3)}


def main() -> None:
    """Run what the command line names."""
    reader = READERS[sys.argv[1]]
    spans = [[int(end) for end in text.split(":")] for text in sys.argv[2:]]
    numbers = chain.from_iterable(range(span[0], span[1] if span[1:] else span[0] + 1) for span in spans)
    assert reader.bases  # made before memory is limited
    signal.signal(signal.SIGALRM, _hang)
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("error")
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = run(reader, numbers)
    result["cpu_s"] = round(time.process_time(), 1)
    result["grown_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    result["forms"] = sorted({base.name for base in reader.bases})
    print(json.dumps(result))


if __name__ == "__main__":
    main()

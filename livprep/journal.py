"""Append-only record of runs, one JSON line an event; the only place of a store that holds times."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any


class Journal:
    """One file of one run below `<store>/journal/`."""

    def __init__(self, store: Path, command: str) -> None:
        folder = store / "journal"
        folder.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.path = folder / f"{stamp}-{command}-{uuid.uuid4().hex[:8]}.jsonl"

    def add(self, event: str, **facts: Any) -> None:
        """Append one event; a line is written by one call, so lines never mix."""
        line = json.dumps({"time": time.time(), "event": event, **facts}, sort_keys=True) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

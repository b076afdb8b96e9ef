"""Append-only record of runs, one JSON line an event; the only place of a store that holds times.

It tells codes and case ids; paths and file names appear on the terminal alone.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Container
from dataclasses import asdict
from pathlib import Path
from typing import Any

from livprep.cases import Receipt


class Journal:
    """One file of one run below `<store>/journal/`."""

    def __init__(self, store: Path, command: str) -> None:
        folder = store / "journal"
        folder.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.path = folder / f"{stamp}-{command}-{uuid.uuid4().hex[:8]}.jsonl"

    def add_receipt(self, receipt: Receipt, known: Container[str]) -> None:
        """Append what became of a case, without what may name a source.

        A rejection keeps its code, warnings keep theirs; the name is kept where it is one of `known`: that of a
        rejected folder or zip which belongs to no case is its own.
        """
        facts = asdict(receipt) | {"warnings": [warning.partition(":")[0] for warning in receipt.warnings]}
        if receipt.status == "rejected":
            facts["detail"] = ""
        if receipt.case not in known:
            facts["case"] = ""
        self.add("receipt", **facts)

    def add(self, event: str, **facts: Any) -> None:
        """Append one event; a line is written by one call, so lines never mix."""
        line = json.dumps({"time": time.time(), "event": event, **facts}, sort_keys=True) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

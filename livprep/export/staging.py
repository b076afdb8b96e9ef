"""An exported folder appears whole or not at all."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from livprep.errors import UsageError
from livprep.store import sync_tree


@contextmanager
def staged_folder(dest: Path) -> Iterator[Path]:
    """A folder beside `dest` that takes its place at the end; it vanishes on failure.

    Raises
    ------
    UsageError
        `dest` is a file, or a folder that is not empty.
    """
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError("USAGE", f"{dest}: exists and is not an empty folder; give the export a new folder")
    dest.parent.mkdir(parents=True, exist_ok=True)
    staging = dest.parent / f".{dest.name}.partial-{uuid.uuid4().hex[:12]}"
    staging.mkdir()
    try:
        yield staging
        sync_tree(staging)  # what was renamed is there after a crash
        staging.replace(dest)  # an empty folder may be replaced
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_json(path: Path, data: Any) -> None:
    """JSON for people and programs: indented, in the given order, UTF-8."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")

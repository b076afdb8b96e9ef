"""Which case came from which files: the one place that tells, written only where the user asks for it.

A store holds no path and no name of its sources, since both often name patients. The map lies outside the store, is
readable by its owner alone, and appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from livprep.cases import Case, FileRef
from livprep.errors import UsageError

Entries = dict[str, list[str]]


def check_private_map(path: Path, store: Path) -> Entries:
    """Return what a map holds already.

    Raises
    ------
    UsageError
        The path is inside the store or in no folder, or something else than a map lies there.
    """
    target = _resolved(path)
    root = Path(os.path.realpath(store))
    if target == root or root in target.parents:
        raise UsageError("USAGE", f"--private-map {path}: lies inside the store, which must not hold source paths")
    if not target.parent.is_dir():
        raise UsageError("USAGE", f"--private-map {path}: there is no folder {target.parent}")
    if not target.exists():
        return {}
    entries: Entries = {}
    try:
        for line in target.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            entries[str(entry["case"])] = [str(name) for name in entry["paths"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError("USAGE", f"--private-map {path}: holds something else; give another file") from error
    return entries


def write_private_map(path: Path, store: Path, cases: Iterable[Case]) -> None:
    """Add cases to a map, one JSON object a line: `{"case": ..., "paths": [...]}`; entries of other cases stay.

    Paths are of single files, else of the folders, with `!/` where a zip is entered.
    """
    entries = check_private_map(path, store) | {case.case_id: _paths(case) for case in cases}
    lines = [json.dumps({"case": name, "paths": paths}) + "\n" for name, paths in sorted(entries.items())]
    target = _resolved(path)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _resolved(path: Path) -> Path:
    """Where a file of that name is replaced: links among its folders followed, a link of that name itself not."""
    return Path(os.path.realpath(path.absolute().parent)) / path.name


def _paths(case: Case) -> list[str]:
    found: set[str] = set()
    for refs in (case.image, *(refs for _, refs in case.masks)):
        found.update(_text(refs[0]) if len(refs) == 1 else _text(ref).rpartition("/")[0] for ref in refs)
    return sorted(found)


def _text(ref: FileRef) -> str:
    return "!/".join((os.path.realpath(ref.path), *ref.members))

"""Bring a store of an older version up: case by case, each staged whole and put in place by one exchange of names.

Killed at any time, every case is of the old or of the new version and readable; running it again goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from livprep.cases import Receipt
from livprep.errors import StoreError
from livprep.schema import SCHEMA_VERSION, CaseMeta, StoreMeta
from livprep.store import layout, versions
from livprep.store.bucket import is_remote
from livprep.store.reading import open_store
from livprep.store.writing import remote_writing


def migrate_store(store: Path) -> Iterator[Receipt]:
    """Migrate every case, then the store itself; yields what became of each case.

    Raises
    ------
    StoreError
        STORE_NEWER or STORE_UNREADABLE: not a store that can be migrated; STORE_CORRUPT: a case is damaged, and was
        left as it is.
    """
    if is_remote(store):
        yield from remote_writing().migrate(store)
        return
    for case_id in open_store(store).case_ids:
        yield migrate_case(store, case_id)
    migrate_root(store)


def migrate_root(store: Path) -> None:
    """Bring the attributes of the store itself up."""
    with layout.locked(store, "store"):
        old = layout.read_attributes(store)
        new = versions.current_root(store, old)
        StoreMeta.model_validate(new)
        if new != old:
            layout.write_json(store / "zarr.json", layout.plain_group(layout.own_attributes(new)))


def version_of(store: Path) -> int:
    """Version that a store says it has.

    Raises
    ------
    StoreError
        STORE_MISSING, STORE_UNREADABLE or STORE_NEWER.
    """
    opened = open_store(store)
    return versions.check_version(store, layout.read_attributes(opened.folder))


def is_current(folder: Path) -> bool:
    """Whether a case is of this version already."""
    return versions.check_version(folder, layout.read_attributes(folder)) == SCHEMA_VERSION


def migrate_case(store: Path, case_id: str) -> Receipt:
    """Migrate one case on a disk."""
    target = layout.case_path(store, case_id)
    with layout.locked(store, case_id), layout.staged(store, case_id) as folder:
        old = layout.read_attributes(target)
        first = versions.check_version(target, old)
        if first == SCHEMA_VERSION:
            return Receipt(case_id, "unchanged")
        shutil.copytree(target, folder, dirs_exist_ok=True)
        _check_copy(case_id, folder)
        for version in range(first, SCHEMA_VERSION):
            change = versions.STEPS[version].files
            if change is not None:
                change(folder)
        new = versions.current_case(target, old)
        CaseMeta.model_validate(new)
        layout.write_json(folder / "zarr.json", layout.plain_group(layout.own_attributes(new)))
        layout.consolidate(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        layout.replace_published(store, folder, target)
    return Receipt(case_id, "published", detail=f"schema {first} to {SCHEMA_VERSION}", bytes_out=size)


def _check_copy(case_id: str, folder: Path) -> None:
    """Damage is not carried over: every file of the copy is what its manifest says."""
    for path in sorted(folder.rglob(layout.MANIFEST)):
        for name, facts in layout.read_manifest(path).items():
            file = path.parent / name
            if not file.is_file() or layout.file_sha256(file) != facts:
                where = file.relative_to(folder).as_posix()
                raise StoreError("STORE_CORRUPT", f"{case_id}: {where} is not what its manifest says; nothing changed")

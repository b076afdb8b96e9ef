"""The Zarr v3 store of a cohort: written by stage-and-rename, read lazily. The only user of zarr."""

from __future__ import annotations

from livprep.store.bucket import is_remote, journal_root, keep_journal, place_of
from livprep.store.checking import Findings, case_folders, check_case, check_root
from livprep.store.chunk_cache import ChunkCache
from livprep.store.direct import Check
from livprep.store.layout import discard_marked, marked, staging_entries, sync_path, sync_tree
from livprep.store.migrating import migrate_store, version_of
from livprep.store.nearby import Surroundings, near_points
from livprep.store.reading import CaseStore, Store, case_files, is_store, open_store
from livprep.store.writing import (
    CaseContent,
    add_window,
    change_preparation,
    channels_of,
    create_store,
    index_points,
    pack,
    publish_case,
    remove_case,
    remove_staging,
    remove_window,
    taken,
)

__all__ = [
    "CaseContent",
    "CaseStore",
    "Check",
    "ChunkCache",
    "Findings",
    "Store",
    "Surroundings",
    "add_window",
    "case_files",
    "case_folders",
    "change_preparation",
    "channels_of",
    "check_case",
    "check_root",
    "create_store",
    "discard_marked",
    "index_points",
    "is_remote",
    "is_store",
    "journal_root",
    "keep_journal",
    "marked",
    "migrate_store",
    "near_points",
    "open_store",
    "pack",
    "place_of",
    "publish_case",
    "remove_case",
    "remove_staging",
    "remove_window",
    "staging_entries",
    "sync_path",
    "sync_tree",
    "taken",
    "version_of",
]

"""Stores as other tools' data sets: nnU-Net v2, MSD decathlon, plain NIfTI, Croissant. From the store alone.

Case by case, so that memory is one case; into a staged folder that is renamed when it is whole; with fresh headers
and case ids only, so that nothing of a source's header or path can be in it; the same bytes every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from livprep.errors import UsageError
from livprep.export import croissant, decathlon, nnunet, plain
from livprep.export.cohort import Cohort, ExportedCase, choose_cases
from livprep.export.staging import staged_folder
from livprep.store import open_store

FormatName = Literal["nifti", "nnunet", "decathlon", "croissant"]
Writer = Callable[[Cohort, Path, str], Iterator[ExportedCase]]
"""(cases, staged folder, name of the data set) -> a record for each case once it is written."""

FORMATS: dict[FormatName, Writer] = {
    "nifti": plain.write,
    "nnunet": nnunet.write,
    "decathlon": decathlon.write,
    "croissant": croissant.write,
}

__all__ = ["FORMATS", "ExportedCase", "FormatName", "export_store"]


def export_store(
    store: Path, name: FormatName, dest: Path, *, cases: str | None = None, split: str = "default"
) -> Iterator[ExportedCase]:
    """Write a store's cases as another data set.

    Parameters
    ----------
    store
        The store.
    name
        A key of `FORMATS`.
    dest
        Folder to make; it may exist if it is empty. It appears when the last record was taken, or not at all.
    cases
        Patterns of case ids, separated by commas; None takes all.
    split
        Name of the recorded split that says what is for training, validation and test. Where nothing is recorded
        under the name, every labelled case is for training.

    Raises
    ------
    UsageError
        USAGE: no case fits, an unknown format, or `dest` is in use.
    StoreError
        There is no store, or a case cannot be read.
    """
    if name not in FORMATS:
        raise UsageError("USAGE", f"export: format {name!r}: expected one of {', '.join(FORMATS)}")
    opened = open_store(store)
    cohort = choose_cases(opened, cases, split)
    with staged_folder(dest) as folder:
        yield from FORMATS[name](cohort, folder, dest.name)

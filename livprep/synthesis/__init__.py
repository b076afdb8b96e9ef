"""Synthetic data sets: phantoms in the exact layout and with the quirks of 3DIRCADb and LiTS, for tests and demos.

Everything follows from the seed, to the byte; `lits-(27+N)` is the same patient as `ircadb-N`, as in reality. Each
data set gets a `catalog.yaml` of its own, because slices, spacings and voxel counts are the phantoms'.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from livprep.catalog import FILE_NAME, Catalog, dump_catalog, load_catalog
from livprep.errors import UsageError
from livprep.synthesis import ircadb, lits
from livprep.synthesis.plan import (
    Counts,
    check_size,
    counts_of,
    ircadb_phantom,
    lits_id,
    lits_phantom,
    phantom_catalog,
)

__all__ = [
    "Counts",
    "ircadb_phantom",
    "lits_phantom",
    "phantom_catalog",
    "write_decathlon",
    "write_ircadb",
    "write_lits",
    "write_phantoms",
]

DEFAULT_SIZE = 128
Dataset = Literal["ircadb", "lits", "decathlon", "both"]
Progress = Callable[[str], None]


def write_ircadb(
    dest: Path, numbers: Sequence[int], *, seed: int = 0, size: int = DEFAULT_SIZE, on_case: Progress | None = None
) -> list[str]:
    """Write synthetic 3DIRCADb patients as `dest/3Dircadb1.N` with their catalogue; returns the case ids.

    Parameters
    ----------
    dest
        Folder to create; may exist if it is empty. It appears complete or not at all.
    numbers
        Patients, 1 to 20.
    seed
        Everything follows from it.
    size
        Pixels in plane; the field of view stays about 400 mm.
    on_case
        Called with each case id once the case is written.

    Raises
    ------
    UsageError
        `dest` is not empty, or a number or the size is out of range.
    """
    with _fresh(dest) as folder:
        return _write({"ircadb": (folder, numbers)}, seed, size, True, on_case)


def write_lits(
    dest: Path,
    numbers: Sequence[int],
    *,
    seed: int = 0,
    size: int = DEFAULT_SIZE,
    gz: bool = True,
    on_case: Progress | None = None,
) -> list[str]:
    """Write synthetic LiTS volumes as `dest/volume-N.nii.gz` and `segmentation-N.nii.gz`; see `write_ircadb`.

    `gz` False writes `.nii`.
    """
    with _fresh(dest) as folder:
        return _write({"lits": (folder, numbers)}, seed, size, gz, on_case)


def write_decathlon(
    dest: Path, numbers: Sequence[int], *, seed: int = 0, size: int = DEFAULT_SIZE, on_case: Progress | None = None
) -> list[str]:
    """Write synthetic LiTS volumes in the form of MSD Task03 Liver: `imagesTr/liver_N.nii.gz`; see `write_ircadb`."""
    with _fresh(dest) as folder:
        return _write({"decathlon": (folder, numbers)}, seed, size, True, on_case)


def write_phantoms(
    dest: Path,
    dataset: Dataset,
    cases: int,
    *,
    seed: int = 0,
    size: int = DEFAULT_SIZE,
    on_case: Progress | None = None,
) -> list[str]:
    """Write `cases` synthetic patients of a data set, or (`both`) under `dest/ircadb` and `dest/lits`.

    3DIRCADb's come in order; LiTS's begin with those that show its quirks. Returns the case ids.
    """
    catalog = load_catalog()
    volumes = lits.numbers_in_order(catalog)
    every = {"ircadb": [case.number for case in catalog.ircadb.cases], "lits": volumes, "decathlon": volumes}
    wanted = ["ircadb", "lits"] if dataset == "both" else [dataset]
    most = min(len(every[name]) for name in wanted)
    if not 1 <= cases <= most:
        raise UsageError("USAGE", f"{cases} phantom cases of {dataset}: expected 1 to {most}")
    with _fresh(dest) as folder:
        targets = {name: (folder / name if dataset == "both" else folder, every[name][:cases]) for name in wanted}
        return _write(targets, seed, size, True, on_case)


def _write(
    targets: Mapping[str, tuple[Path, Sequence[int]]], seed: int, size: int, gz: bool, on_case: Progress | None
) -> list[str]:
    """Write each target's numbers patient by patient, then the catalogue that describes all of them."""
    check_size(size)
    catalog = load_catalog()
    counts: dict[int, Counts] = {}
    written: list[str] = []
    for name, (folder, numbers) in targets.items():
        folder.mkdir(parents=True, exist_ok=True)
        for number in dict.fromkeys(numbers):
            case_id = _write_case(name, folder, number, catalog, counts, seed, size, gz)
            written.append(case_id)
            if on_case is not None:
                on_case(case_id)
    text = f"# The catalogue of phantoms of seed {seed} and size {size}: synthetic, no patient's data.\n"
    text += dump_catalog(phantom_catalog(catalog, seed=seed, size=size, counts=counts))
    folders = [folder for folder, _ in targets.values()]
    if len(folders) > 1:
        folders.append(folders[0].parent)  # so that the parent of all can be ingested in one go
    for folder in folders:
        (folder / FILE_NAME).write_text(text, encoding="utf-8")
    return sorted(written)


def _write_case(
    name: str, folder: Path, number: int, catalog: Catalog, counts: dict[int, Counts], seed: int, size: int, gz: bool
) -> str:
    if name == "ircadb":
        phantom = ircadb_phantom(number, seed=seed, size=size, catalog=catalog)
        case = catalog.ircadb.case(number)
        assert case is not None  # ircadb_phantom refuses other numbers
        facts = catalog.ircadb
        counts[number] = ircadb.write_case(folder, phantom, case, facts.layout, facts.masks, seed)
        return case.case_id
    phantom = lits_phantom(number, seed=seed, size=size, catalog=catalog)
    if name == "decathlon":
        lits.write_decathlon_case(folder, phantom, number, catalog, seed)
    else:
        lits.write_case(folder, phantom, number, catalog, seed, gz=gz)
    repair = catalog.lits.repair(number)
    case = catalog.ircadb.case(repair.ircadb) if repair else None
    if case is not None:
        counts.setdefault(case.number, counts_of(phantom, ircadb.outside_count(phantom, case)))
    return lits_id(number)


@contextmanager
def _fresh(dest: Path) -> Iterator[Path]:
    """Folder whose content becomes that of `dest` on success and vanishes on failure."""
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError("USAGE", f"{dest}: exists and is not an empty folder; give phantoms a new folder")
    exists = dest.is_dir()
    # An empty folder keeps its place: it may be a mount point or the working directory.
    parent = dest if exists else dest.parent
    staging = parent / f".phantoms.{uuid.uuid4().hex[:12]}"
    staging.mkdir(parents=True)
    try:
        yield staging
        if exists:
            for child in staging.iterdir():
                child.replace(dest / child.name)
        else:
            staging.replace(dest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)

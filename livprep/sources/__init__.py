"""Data sets: how each lies on disk, and how its cases become labelled volumes.

`discover` looks at names only (and, for scans of no known data set, at headers); `read_case` reads one case whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from livprep.cases import Case, FileRef, Rejection, printable
from livprep.catalog import SIZE_LIMIT_BYTES, Catalog
from livprep.errors import SourceError, UsageError
from livprep.formats.archive import Faults, Parts, close_archives, read_start, walk
from livprep.formats.hashing import HashingReader
from livprep.sources import anyscan, ircadb, lits, own
from livprep.sources.found import Files, Found, SourceCase

__all__ = [
    "CATALOG_NAME",
    "Discovery",
    "SourceCase",
    "catalog_beside",
    "discover",
    "read_case",
    "source_digest",
]

Choice = Literal["auto", "ircadb", "lits", "own", "any"]
CATALOG_NAME = "catalog.yaml"


@dataclass(frozen=True)
class Discovery:
    """Cases found, sorted by id, what was found but cannot be read, and scans that are known to be left out."""

    cases: tuple[Case, ...]
    rejected: tuple[Rejection, ...]
    ignored: tuple[Rejection, ...] = ()

    @property
    def aside(self) -> str:
        """What was left out and why, to end the message of a command that found nothing else; empty if nothing."""
        reasons = dict.fromkeys(entry.detail for entry in self.ignored)
        return f" (left out: {'; '.join(reasons)})" if reasons else ""


def catalog_beside(paths: Sequence[Path]) -> Path | None:
    """A catalogue that lies at the root of a source folder (phantoms carry their own), or None.

    Raises
    ------
    UsageError
        Two sources carry different catalogues.
    SourceError
        SOURCE_MISSING: one cannot be opened.
    """
    found = [path / CATALOG_NAME for path in paths if (path / CATALOG_NAME).is_file()]
    if len({read_start(FileRef(str(path)), SIZE_LIMIT_BYTES + 1) for path in found}) > 1:
        raise UsageError("USAGE", f"{found[0]} and {found[1]} differ: ingest the folders one by one")
    return found[0] if found else None


def discover(paths: Sequence[Path], catalog: Catalog, dataset: Choice = "auto") -> Discovery:
    """Find the cases under folders, zips and files.

    Parameters
    ----------
    paths
        Where to look.
    catalog
        What the data sets are.
    dataset
        `auto` looks for what the catalogue lists as own, 3DIRCADb and LiTS, `any` takes every CT series and NIfTI as a
        case of its own.

    Raises
    ------
    SourceError
        SOURCE_MISSING or ARCHIVE_… for a path that cannot be listed; what lies below it and cannot be listed
        rejects its case alone.
    """
    files: dict[tuple[Parts, FileRef], None] = {}  # a set in order: sources may overlap
    faults: Faults = []
    outward: list[Parts] = []
    roots = [root for path in paths for root in _roots(Path(path))]
    try:
        for path in paths:
            parents, faulty, links = Path(path).absolute().parent.parts, Faults(), list[Parts]()
            files.update((((*parents, *parts), ref), None) for parts, ref in walk(Path(path), faulty, links))
            faults.extend(((*parents, *parts), error) for parts, error in faulty)
            outward.extend((*parents, *parts) for parts in links)
        found = [*_find(list(files), catalog, dataset, roots), _links(outward)]
    finally:
        close_archives()
    name_of = _scan_of if dataset == "any" else _case_of
    named = [(name_of(parts, catalog), error) for parts, error in faults]
    return _merge(found, {name: Rejection(name, error.code, error.message) for name, error in named if name})


def _roots(path: Path) -> list[Parts]:
    """Parts that the files of a source have in front; a zip mostly holds one folder of its own name."""
    path = path.absolute()
    if path.suffix.lower() != ".zip" or not path.is_file():
        return [path.parts]
    inside = path.with_suffix("")
    return [inside.parts, (*inside.parts, inside.name)]


def _find(files: Files, catalog: Catalog, dataset: Choice, roots: Sequence[Parts]) -> list[Found]:
    if dataset == "any":
        return [anyscan.find(files, catalog)]
    found = []
    if dataset in ("auto", "own") and catalog.own:
        found.append(own.find(files, catalog, roots))
        taken = {ref for case in found[0].cases for ref in (*case.image, *(r for _, refs in case.masks for r in refs))}
        files = [(parts, ref) for parts, ref in files if ref not in taken]
    finders = {"ircadb": ircadb.find, "lits": lits.find}
    return found + [find(files, catalog) for name, find in finders.items() if dataset in ("auto", name)]


def _links(outward: Sequence[Parts]) -> Found:
    """Links that lead out of a source, which nobody would miss otherwise: what they lead to may not be meant."""
    counts = Counter(parts[:-1] for parts in outward)
    return Found(
        ignored=[
            Rejection(
                printable(str(Path(*folder))),
                "",
                f"symbolic links that lead out of the source are not followed: {count}; name what they lead to instead",
            )
            for folder, count in sorted(counts.items())
        ]
    )


def _case_of(parts: Parts, catalog: Catalog) -> str:
    """Case that a zip or folder belongs to by its name, else the name; empty where no case needs it."""
    if parts[-1].casefold() in map(str.casefold, catalog.ircadb.layout.ignored):
        return ""
    for end in range(len(parts), 0, -1):
        number, name = catalog.ircadb.layout.case_number(parts[end - 1]), catalog.lits.layout.locate(parts[:end])
        if number is not None:
            return ircadb.case_id(number)
        if name is not None and not (name.decathlon and name.kind == "test_volume"):
            return lits.case_id(name.number, test=name.kind.startswith("test"))
    return printable(parts[-1])


def _scan_of(parts: Parts, catalog: Catalog) -> str:
    return printable(str(Path(*parts)))


def _merge(found: Sequence[Found], faulty: dict[str, Rejection]) -> Discovery:
    cases: dict[str, Case] = {}
    rejected = [entry for part in found for entry in part.rejected if entry.case_id not in faulty]
    rejected.extend(faulty.values())
    for case in (case for part in found for case in part.cases if case.case_id not in faulty):
        if case.case_id in cases:
            rejected.append(
                Rejection(
                    case.case_id,
                    "CASE_DUPLICATE",
                    f"{case.case_id}: found at {cases[case.case_id].image[0]} and again at {case.image[0]}",
                )
            )
        else:
            cases[case.case_id] = case
    return Discovery(
        tuple(cases[key] for key in sorted(cases)),
        tuple(sorted(rejected, key=lambda entry: entry.case_id)),
        tuple(entry for part in found for entry in part.ignored),
    )


def read_case(case: Case, catalog: Catalog) -> SourceCase:
    """Read one case whole: scan, labels, repairs, findings and the digest of its source bytes.

    Raises
    ------
    SourceError
        Whatever is wrong with the case, with its code.
    """
    reader = HashingReader()
    try:
        if case.dataset == "ircadb":
            return ircadb.read(case, catalog, reader)
        if case.dataset == "lits":
            return lits.read(case, catalog, reader)
        if case.dataset == "own":
            return own.read(case, catalog, reader)
        return anyscan.read(case, reader)
    except MemoryError as error:
        raise SourceError("CASE_TOO_LARGE", f"{case.case_id}: does not fit into the worker's memory") from error
    finally:
        close_archives()


def source_digest(case: Case) -> str:
    """The digest that `read_case` would find, without parsing anything."""
    reader = HashingReader()
    try:
        for ref in case.image:
            reader.read("image", ref)
        for name, refs in case.masks:
            for ref in refs:
                reader.read(name, ref)
        return reader.digest()
    finally:
        close_archives()

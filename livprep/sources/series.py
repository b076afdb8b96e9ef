"""Which CT slices form one series: by series UID and folder, and by position where these two mislead."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from livprep.cases import FileRef, Note
from livprep.formats.archive import Parts
from livprep.formats.dicom_header import SeriesKey

STEP_TOLERANCE = 0.05
"""Largest difference of slice distances, as a share of their median, at which slices of several folders are one stack;
not more than what the reader takes as even."""
SAME_PLACE_MM = 1e-3


@dataclass(frozen=True)
class Group:
    """Slices that are taken as one series, the folder that holds all of them, and what is to be said of it."""

    folder: Parts
    slices: tuple[tuple[FileRef, SeriesKey], ...]
    notes: tuple[Note, ...] = ()

    @property
    def refs(self) -> tuple[FileRef, ...]:
        """Their files."""
        return tuple(ref for ref, _ in self.slices)


def group(found: Iterable[tuple[Parts, FileRef, SeriesKey]]) -> list[Group]:
    """Group CT slices.

    The slices of one UID in one folder are a series. Media and exports that put so many files into a folder, or each
    into its own, spread a series over folders: it is joined where all slices make one even stack. Copies of a series
    do not, nor do scans that a bad pseudonymization gave one UID; they stay apart. A series that holds several phases
    is divided where one element tells them apart.
    """
    by_uid: dict[tuple[str, Parts], dict[Parts, list[tuple[FileRef, SeriesKey]]]] = defaultdict(dict)
    for folder, ref, key in found:
        alone = () if key.uid else folder  # without a UID only the folder tells what belongs together
        by_uid[key.uid, alone].setdefault(folder, []).append((ref, key))
    groups = []
    for _, folders in sorted(by_uid.items()):
        everything = tuple(entry for entries in folders.values() for entry in entries)
        if len(folders) > 1 and _is_stack(everything):
            groups.append(Group(_common(list(folders)), everything))
            continue
        notes: tuple[Note, ...] = ()
        if len(folders) > 1:
            detail = f"the series UID lies in {len(folders)} folders; each folder is taken by itself"
            notes = (Note("SERIES_SPREAD", detail),)
        for folder, entries in folders.items():
            groups.extend(_by_phase(Group(folder, tuple(entries), notes)))
    return sorted(groups, key=lambda entry: entry.folder)


def _is_stack(slices: Sequence[tuple[FileRef, SeriesKey]]) -> bool:
    """Whether the slices lie at even distances of one another, none at the place of another."""
    placed = [key for _, key in slices if not key.localizer]
    if len(placed) < 2 or any(key.position is None for key in placed):
        return False
    points = np.array([key.position for key in placed], dtype=np.float64)
    points = points[np.argsort(points[:, np.ptp(points, axis=0).argmax()])]
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    return bool(steps.min() > SAME_PLACE_MM and np.ptp(steps) <= STEP_TOLERANCE * np.median(steps))


def _by_phase(whole: Group) -> list[Group]:
    """Divide a series whose slices share places by the first element under which they no longer do."""
    if not _share_places(whole.slices):
        return [whole]
    for element in ("acquisition", "phase"):
        parts: dict[str, list[tuple[FileRef, SeriesKey]]] = defaultdict(list)
        for ref, key in whole.slices:
            parts[getattr(key, element)].append((ref, key))
        stacks = [parts[name] for name in sorted(parts, key=lambda text: (len(text), text))]
        if len(parts) > 1 and not any(len(stack) < 2 or _share_places(stack) for stack in stacks):
            note = Note("SERIES_PHASES", f"one of {len(stacks)} acquisitions or times of a series at the same places")
            return [Group(whole.folder, tuple(stack), (*whole.notes, note)) for stack in stacks]
    return [whole]


def _share_places(slices: Sequence[tuple[FileRef, SeriesKey]]) -> bool:
    places = [key.position for _, key in slices if key.position is not None and not key.localizer]
    return len(set(places)) < len(places)


def _common(folders: Sequence[Parts]) -> Parts:
    """The innermost folder that holds all of them."""
    first, last = min(folders), max(folders)
    same = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same]

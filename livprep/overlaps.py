"""The same scan under two names, from the voxels and from the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Duplicate:
    """Two cases that are one scan, or should be, and what says so."""

    a: str
    b: str
    evidence: str


def find_overlaps(patients: Mapping[str, str], fingerprints: Mapping[str, str]) -> list[Duplicate]:
    """Pairs of cases with equal fingerprints, and pairs that only the catalogue calls one patient.

    Parameters
    ----------
    patients
        Case id -> the catalogue's patient.
    fingerprints
        Case id -> fingerprint of the voxels (`livprep.fingerprint`), of the same cases.
    """
    found = []
    for a, b in combinations(sorted(patients), 2):
        same_voxels, same_patient = fingerprints[a] == fingerprints[b], patients[a] == patients[b]
        if not (same_voxels or same_patient):
            continue
        voxels = f"equal HU histograms ({fingerprints[a][:12]})" if same_voxels else "HU histograms differ"
        names = f"one patient, {patients[a]}" if same_patient else f"two patients, {patients[a]} and {patients[b]}"
        found.append(Duplicate(a, b, f"voxels: {voxels}; catalogue: {names}"))
    return found

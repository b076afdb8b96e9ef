"""Bit rot: whatever happens to one file below `cases/`, `verify --deep` finds it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from livprep.audit import AuditRequest, plan_audit, run_audit
from livprep.cases import Finding
from livprep.store import open_store, remove_case

Rng = np.random.Generator


def findings(store: Path, *, deep: bool = True) -> list[Finding]:
    """What `livprep verify` finds."""
    audit = plan_audit(AuditRequest(store, deep=deep, workers=1))
    return [finding for verdict in run_audit(audit) for finding in verdict.findings]


def errors(store: Path) -> list[Finding]:
    return [finding for finding in findings(store) if finding.severity == "error"]


def any_file(store: Path, rng: Rng) -> Path:
    """A file below `cases/`; small ones as often as large ones."""
    files = sorted(path for path in (store / "cases").rglob("*") if path.is_file())
    return files[rng.integers(len(files))]


def flip(store: Path, rng: Rng) -> str:
    path = any_file(store, rng)
    data = bytearray(path.read_bytes())
    position, bit = int(rng.integers(len(data))), int(rng.integers(8))
    data[position] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {position} of {path}"


def truncate(store: Path, rng: Rng) -> str:
    path = any_file(store, rng)
    size = int(rng.integers(path.stat().st_size))
    path.write_bytes(path.read_bytes()[:size])
    return f"{path} cut to {size} bytes"


def zero(store: Path, rng: Rng) -> str:
    """A block of zeros, as a disk or a crash leaves it; the whole file in half of the cases."""
    path = any_file(store, rng)
    data = bytearray(path.read_bytes())
    start, stop = (0, len(data)) if rng.random() < 0.5 else sorted(int(k) for k in rng.integers(len(data) + 1, size=2))
    if not any(data[start:stop]):
        start, stop = 0, len(data)
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)
    return f"{path} zeroed at {start}:{stop}"


def delete(store: Path, rng: Rng) -> str:
    path = any_file(store, rng)
    path.unlink()
    return f"{path} deleted"


def swap(store: Path, rng: Rng) -> str:
    a = any_file(store, rng)
    others = [path for path in (store / "cases").rglob("*") if path.is_file() and path.read_bytes() != a.read_bytes()]
    alike = [path for path in others if path.name == a.name]  # the harder half: the same name, of another case or array
    chosen = sorted(alike if alike and rng.random() < 0.7 else others)
    b = chosen[rng.integers(len(chosen))]
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    return f"{a} and {b} swapped"


def edit(store: Path, rng: Rng) -> str:
    """Another value, or one key less, in one of the JSON files; well-formed and written as the store writes."""
    files = sorted((store / "cases").rglob("*.json"))
    path = files[rng.integers(len(files))]
    data = json.loads(path.read_bytes())
    places = list(leaves(data))
    parent, key = places[rng.integers(len(places))]
    if isinstance(parent, dict) and rng.random() < 0.25:
        del parent[key]
    else:
        parent[key] = changed(parent[key])
    path.write_text(json.dumps(data, sort_keys=True, indent=1) + "\n")
    return f"{path} edited at {key}"


def leaves(node: Any) -> Iterator[tuple[Any, Any]]:
    """Parent and key of every value, groups too."""
    for key, value in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
        yield node, key
        if isinstance(value, dict | list):
            yield from leaves(value)


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "0" if not value else chr(ord(value[0]) ^ 1) + value[1:]
    return None if value else {"a": 1}


FAULTS: tuple[Callable[[Path, Rng], str], ...] = (flip, truncate, zero, delete, swap, edit)


@contextmanager
def harmed(store: Path, backup: Path) -> Iterator[None]:
    """Put back every file that the block changed."""
    try:
        yield
    finally:
        for kept in backup.rglob("*"):
            path = store / kept.relative_to(backup)
            if kept.is_file() and (not path.is_file() or path.read_bytes() != kept.read_bytes()):
                path.write_bytes(kept.read_bytes())


def hunt(store: Path, backup: Path, count: int, seed: int) -> Counter[str]:
    """Cause `count` faults one by one and return how many of each kind were found."""
    shutil.copytree(store, backup)
    assert findings(store) == []
    found: Counter[str] = Counter()
    for k in range(count):
        fault = FAULTS[k % len(FAULTS)]
        with harmed(store, backup):
            what = fault(store, np.random.default_rng([seed, k]))
            assert errors(store), f"fault {k}: {what}: not found"
            found[fault.__name__] += 1
    assert findings(store) == []
    return found


def test_120_faults_are_found(store_of_two: Path, tmp_path: Path) -> None:
    found = hunt(store_of_two, tmp_path / "backup", 120, seed=0)
    assert found == dict.fromkeys(("flip", "truncate", "zero", "delete", "swap", "edit"), 20)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_1000_faults_are_found(store_copy: Path, tmp_path: Path) -> None:
    found = hunt(store_copy, tmp_path / "backup", 1000, seed=1)
    assert sum(found.values()) == 1000


def test_every_bit_of_a_cases_own_metadata_counts(store_of_two: Path) -> None:
    """The one file that no manifest lists: 300 places over its length, attributes and consolidated metadata."""
    path = store_of_two / "cases" / "ircadb-01" / "zarr.json"
    data = path.read_bytes()
    for k, position in enumerate(np.linspace(0, len(data) - 1, 300).astype(int)):
        broken = bytearray(data)
        broken[position] ^= 1 << k % 8
        path.write_bytes(broken)
        found = [f for f in findings(store_of_two, deep=False) if f.severity == "error"]
        assert found, f"byte {position}: {data[position - 20 : position + 20]!r}"
    path.write_bytes(data)
    assert findings(store_of_two) == []


@pytest.fixture
def store_of_two(store_copy: Path) -> Path:
    """A store with one DICOM and one NIfTI case that a test may change."""
    for name in set(open_store(store_copy)) - {"ircadb-01", "lits-068"}:
        remove_case(store_copy, name)
    return store_copy

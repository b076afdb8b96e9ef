"""Whether the files of a store are those that were published; no voxel is decoded here.

Every byte below `cases/` is held by something: the files of a component by its manifest, a manifest by the one
text that follows from its case and files, a case's own metadata by the digest of its attributes and by what lies
below it, the groups between them by their fixed text.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from livprep.cases import Finding, printable
from livprep.errors import StoreError
from livprep.labels import Label
from livprep.schema import CaseMeta
from livprep.store import layout
from livprep.store.ome import AXES
from livprep.store.reading import CaseStore, Store

GROUP = "zarr.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading damaged JSON as something of a known form can raise."""


@dataclass
class Findings:
    """Collects what is found of one case; `case` is empty for the store itself."""

    case: str
    found: list[Finding] = field(default_factory=list)

    def add(self, code: str, detail: str, severity: Literal["error", "warning", "info"] = "error") -> None:
        """Add one finding."""
        self.found.append(Finding(self.case, code, severity, printable(detail)))

    @property
    def errors(self) -> int:
        """Findings that are errors."""
        return sum(finding.severity == "error" for finding in self.found)


def check_root(store: Store) -> list[Finding]:
    """Check what belongs to no case: the store's own metadata, leftovers, strangers among the cases."""
    found = Findings("")
    try:
        node = json.loads((store.folder / GROUP).read_bytes())
        expected = layout.plain_group(layout.own_attributes(node["attributes"][layout.OWN]))
        _check_own(found, store.folder, node, expected)
    except _DAMAGE as error:
        found.add("STORE_ATTRIBUTES", f"{GROUP} of the store cannot be read ({type(error).__name__})")
    _check_fixed(found, store.folder, f"{layout.CASES}/{GROUP}")
    for path in layout.staging_entries(store.folder):
        found.add("STORE_STAGING", f"{path.relative_to(store.folder).as_posix()} is unfinished work", "info")
    cases = set(case_folders(store))
    for path in sorted((store.folder / layout.CASES).iterdir()):
        if path.name not in cases and path.name != GROUP and not layout.is_partial(path.name):
            found.add("STORE_FILE_EXTRA", f"{layout.CASES}/{path.name} is no case", "warning")
    return found.found


def case_folders(store: Store) -> list[str]:
    """Names of all case folders, sorted; also of those that readers skip because their metadata are gone."""
    folder = store.folder / layout.CASES
    return sorted(p.name for p in folder.iterdir() if layout.is_plain(p.name) and p.is_dir() and not p.is_symlink())


def check_case(case: CaseStore, deep: bool) -> tuple[list[Finding], set[str]]:
    """Check the files of one case.

    Parameters
    ----------
    case
        A case folder; its files may be in any state.
    deep
        Also compare the content of each file with its manifest.

    Returns
    -------
    Findings, and the components (`hu`, `train`, `windows/<name>`, ...) whose arrays must not be trusted.
    """
    found = Findings(case.case_id)
    try:
        meta: CaseMeta | None = case.meta
    except StoreError as error:
        meta = None
        found.add("STORE_ATTRIBUTES", error.message)
    components = _components(case.path)
    _check_strangers(found, case.path, components)
    damaged = set()
    for component in components:
        before = found.errors
        _check_component(found, case.path, component, meta, deep)
        if found.errors > before:
            damaged.add(component)
    _check_fixed(found, case.path, f"{layout.WINDOWS}/{GROUP}")
    _check_metadata(found, case.path)
    return found.found, damaged


def _components(case: Path) -> list[str]:
    windows = case / layout.WINDOWS
    names = sorted(p.name for p in windows.iterdir() if p.is_dir() and not p.is_symlink()) if windows.is_dir() else []
    return [layout.HU, layout.TRAIN, layout.INDEX, *(f"{layout.WINDOWS}/{name}" for name in names)]


def _entries(folder: Path) -> dict[str, os.stat_result]:
    """Everything below a folder that is no real folder, by relative path; links are not followed."""
    entries = {}
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for path in (Path(root) / name for name in (*names, *links)):
            entries[path.relative_to(folder).as_posix()] = path.lstat()
    return entries


def _check_strangers(found: Findings, case: Path, components: list[str]) -> None:
    known = {GROUP, f"{layout.WINDOWS}/{GROUP}"}
    for name in sorted(_entries(case)):
        inside = any(name.startswith(f"{component}/") for component in components)
        if name not in known and not inside and not layout.is_partial(name):
            found.add("STORE_FILE_EXTRA", f"{name} belongs to no component")


def _check_fixed(found: Findings, folder: Path, name: str) -> None:
    """Check a group that says nothing of its own."""
    try:
        same = (folder / name).read_bytes() == layout.json_text(layout.plain_group({})).encode()
    except OSError as error:
        found.add("STORE_FILE_MISSING", f"{name} cannot be read ({type(error).__name__})")
        return
    if not same:
        found.add("STORE_ATTRIBUTES", f"{name} is not as it was written")


def _check_own(found: Findings, folder: Path, node: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare a group's attributes with their digest, and its file with its one text."""
    if node["attributes"].get(layout.OWN_DIGEST) != expected["attributes"][layout.OWN_DIGEST]:
        found.add("STORE_ATTRIBUTES", f"{GROUP}: its attributes do not match their digest")
    elif (folder / GROUP).read_bytes() != layout.json_text(expected).encode():
        found.add("STORE_ATTRIBUTES", f"{GROUP} is not as it was written")


def _check_metadata(found: Findings, case: Path) -> None:
    """Check a case's own metadata file: attributes, and the consolidated metadata of all that lies below."""
    try:
        node = json.loads((case / GROUP).read_bytes())
        own = layout.own_attributes(node["attributes"][layout.OWN])
        stored = node["consolidated_metadata"]["metadata"]
        present = dict(stored)
    except _DAMAGE as error:
        found.add("STORE_ATTRIBUTES", f"{GROUP} of the case cannot be read ({type(error).__name__})")
        return
    try:
        rebuilt = layout.consolidated(case)["consolidated_metadata"]
    except _DAMAGE as error:
        found.add("STORE_CONSOLIDATED", f"metadata below the case cannot be read ({type(error).__name__})")
        return
    expected = rebuilt["metadata"]
    if present == expected:
        _check_own(found, case, node, {**layout.plain_group(own), "consolidated_metadata": rebuilt})
        return
    wrong = sorted(n for n in {*present, *expected} if present.get(n, ()) != expected.get(n, ()))
    # A run that is killed after a channel was published leaves exactly this; the channel is whole.
    unseen = {n for n in expected if n.startswith(f"{layout.WINDOWS}/") and n not in present}
    pending = bool(present) and set(wrong) <= unseen
    _check_own(found, case, node, {**layout.plain_group(own), "consolidated_metadata": node["consolidated_metadata"]})
    text = f"the case's consolidated metadata differ from the files at {', '.join(wrong[:3])}"
    found.add("STORE_CONSOLIDATED", text, "warning" if pending else "error")


def _required(component: str, labelled: bool) -> list[str]:
    """Metadata files that a component must have."""
    if component == layout.TRAIN:
        arrays = ["", "packed/"]
    elif component == layout.INDEX:
        arrays = ["", *(f"{name}/" for name in (*(label.name.lower() for label in Label), layout.NEAR) if labelled)]
    else:
        arrays = ["", "scale0/", f"{layout.IMAGE}/", *(f"scale0/{axis}/" for axis in AXES)]
        if component == layout.HU and labelled:
            inner = ("", f"{layout.LABEL_IMAGE}/", *(f"{axis}/" for axis in AXES))
            arrays += ["labels/", *(f"{layout.LABELS}/{name}" for name in inner)]
    return [f"{name}{GROUP}" for name in arrays]


def _check_component(found: Findings, case: Path, component: str, meta: CaseMeta | None, deep: bool) -> None:
    folder = case / component
    before = found.errors
    try:
        text = (folder / layout.MANIFEST).read_bytes()
        manifest = json.loads(text)
        listed = {str(n): (int(f["size"]), str(f["sha256"])) for n, f in manifest["files"].items()}
    except FileNotFoundError:
        found.add("STORE_FILE_MISSING", f"{component}/{layout.MANIFEST} is missing")
        return
    except (*_DAMAGE, OverflowError) as error:
        found.add("STORE_MANIFEST", f"{component}/{layout.MANIFEST} cannot be read ({type(error).__name__})")
        return
    entries = _entries(folder)
    entries.pop(layout.MANIFEST)
    for name in sorted({*entries, *listed}):
        _check_file(found, folder, component, name, entries.get(name), listed.get(name), deep)
    if found.errors > before:
        return
    labelled = meta is None or meta.label_voxels is not None
    for name in _required(component, labelled):
        if name not in listed and meta is not None:
            found.add("STORE_FILE_MISSING", f"{component}/{name} is missing, in the manifest too")
    facts = {key: value for key, value in manifest.items() if key != "files"}
    if meta is not None:
        facts = {"source_digest": meta.source.digest}
        if not component.startswith(f"{layout.WINDOWS}/"):
            facts["settings_digest"] = meta.settings_digest
    files = {name: {"size": size, "sha256": digest} for name, (size, digest) in listed.items()}
    if text != layout.json_text({**facts, "files": files}).encode():
        detail = "is not that of this case's source and settings"
        found.add("STORE_MANIFEST", f"{component}/{layout.MANIFEST} {detail}, or is not as it was written")


def _check_file(
    found: Findings,
    folder: Path,
    component: str,
    name: str,
    entry: os.stat_result | None,
    listed: tuple[int, str] | None,
    deep: bool,
) -> None:
    """Check one name that lies in a component or is listed in its manifest."""
    where = f"{component}/{name}"
    if listed is None:
        found.add("STORE_FILE_EXTRA", f"{where} is not in the manifest")
    elif entry is None:
        found.add("STORE_FILE_MISSING", f"{where} is missing")
    elif not stat.S_ISREG(entry.st_mode):
        found.add("STORE_FILE_MISSING", f"{where} is no plain file")
    elif entry.st_size != listed[0]:
        found.add("STORE_SIZE", f"{where} has {entry.st_size} bytes, expected {listed[0]}")
    elif not _SHA256.fullmatch(listed[1]):
        found.add("STORE_MANIFEST", f"{component}/{layout.MANIFEST} has no sha256 of {name}")
    elif deep:
        try:
            same = layout.file_sha256(folder / name) == listed[1]
        except OSError as error:
            found.add("STORE_FILE_MISSING", f"{where} cannot be read ({type(error).__name__})")
            return
        if not same:
            found.add("STORE_HASH", f"{where} has another content than the manifest says")

"""Write a store in an object storage: no rename there, so what makes a case or channel visible is written last.

A case is there when its own zarr.json is, a channel likewise: both are put when everything else has arrived, so that
a run that dies leaves objects that nobody sees and that the next run writes over. What is written is deterministic,
so two writers of one case write the same; the first one's zarr.json stays. There are no locks: two runs that add and
remove channels of one case at once may leave its consolidated metadata behind, which `livprep window` puts right.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from livprep.cases import Receipt
from livprep.errors import StoreError
from livprep.prepare import Preparation
from livprep.schema import PROFILES, ProfileName, WindowMeta
from livprep.store import layout, migrating, writing
from livprep.store.bucket import Bucket, address_of, relative_files
from livprep.store.remote import RemoteCase, RemoteStore, fetched_case
from livprep.windows import Window

_ROOT = "zarr.json"


def create(path: Path, preparation: Preparation, profile: ProfileName, catalog_digest: str) -> None:
    """Create an empty store where there is none."""
    bucket = Bucket(address_of(path))
    if bucket.get(_ROOT) is not None:
        return
    with tempfile.TemporaryDirectory(prefix="livprep-") as temporary:
        folder = Path(temporary)
        writing.write_root(folder, preparation, profile, catalog_digest)
        (folder / layout.CASES).mkdir()
        layout.write_json(folder / layout.CASES / _ROOT, layout.plain_group({}))
        bucket.put(f"{layout.CASES}/{_ROOT}", folder / layout.CASES / _ROOT)
        bucket.put(_ROOT, folder / _ROOT, new=True)


def publish_case(store: Path, content: writing.CaseContent, profile: ProfileName, *, replace: bool) -> int:
    """As `writing.publish_case`."""
    remote, name = RemoteStore(store), content.meta.case
    own = f"{layout.CASES}/{name}"
    if name in remote and not replace:
        return 0
    channels = _channels(remote, name)
    with tempfile.TemporaryDirectory(prefix="livprep-") as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        writing.write_case(folder, content, PROFILES[profile])
        writing.write_channels(folder, content, channels, PROFILES[profile])
        names = list(relative_files(folder))
        if replace:
            remote.bucket.delete([f"{own}/{_ROOT}"])  # out of sight until all of the new one is there
        remote.bucket.upload(folder, [each for each in names if each != _ROOT], own)
        kept = {f"{own}/{each}" for each in names}
        remote.bucket.delete(key for key in remote.sizes if key.startswith(f"{own}/") and key not in kept)
        size = sum((folder / each).stat().st_size for each in names)
        return size if remote.bucket.put(f"{own}/{_ROOT}", folder / _ROOT, new=True) else 0


def _channels(remote: RemoteStore, case_id: str) -> Sequence[WindowMeta]:
    """Channels of a case; also of one that a killed run took out of sight."""
    own = f"{layout.CASES}/{case_id}/{layout.WINDOWS}/"
    found = []
    with tempfile.TemporaryDirectory(prefix="livprep-") as temporary:
        keys = [key for key in remote.sizes if key.startswith(own) and key.count("/") == 4 and key.endswith(_ROOT)]
        remote.bucket.download(keys, Path(temporary))
        for key in sorted(keys):
            try:
                attributes = layout.read_attributes((Path(temporary) / key).parent)
                found.append(WindowMeta.model_validate(attributes))
            except (StoreError, ValueError):
                continue
    return found


def add_window(store: Path, case_id: str, window: Window, order: int) -> int:
    """As `writing.add_window`."""
    case = _case(store, case_id)
    writing.check_free(case, window)
    if window.name in case.window_names:
        _consolidate(store, case_id)  # an earlier run may have been killed before this step
        return 0
    profile = PROFILES[case.remote.meta.profile]
    hu = case.read_hu()
    values, meta = window.apply(hu), WindowMeta.of(window, order, hu)
    own = f"{layout.CASES}/{case_id}/{layout.WINDOWS}/{window.name}"
    with tempfile.TemporaryDirectory(prefix="livprep-") as temporary:
        folder = Path(temporary) / window.name
        writing.write_channel(folder, values, case.geometry, meta, case.meta.source.digest, profile)
        names = list(relative_files(folder))
        case.remote.bucket.upload(folder, [each for each in names if each != _ROOT], own)
        size = sum((folder / each).stat().st_size for each in names)
        published = case.remote.bucket.put(f"{own}/{_ROOT}", folder / _ROOT, new=True)
    _consolidate(store, case_id)
    return size if published else 0


def remove_window(store: Path, case_id: str, name: str) -> bool:
    """As `writing.remove_window`."""
    case = _case(store, case_id)
    own = f"{layout.CASES}/{case_id}/{layout.WINDOWS}/{name}/"
    found = [key for key in case.remote.sizes if key.startswith(own)]  # also what a killed run left of it
    if found:
        case.remote.bucket.delete([f"{own}{_ROOT}"])
        case.remote.bucket.delete(found)
    _consolidate(store, case_id)
    return bool(found)


def remove_case(store: Path, case_id: str) -> None:
    """As `writing.remove_case`."""
    bucket = Bucket(address_of(store))
    own = f"{layout.CASES}/{case_id}"
    bucket.delete([f"{own}/{_ROOT}"])
    bucket.delete(bucket.sizes(own))


def migrate(store: Path) -> Iterator[Receipt]:
    """As `migrating.migrate_store`: a case is migrated as on a disk, and what changed is put, its zarr.json last.

    Killed while it puts, it may leave files of both versions in one case, which is then refused as damaged
    (STORE_CORRUPT) until `livprep ingest --replace` rebuilds it.
    """
    remote = RemoteStore(store)
    for case_id in remote.case_ids:
        yield _migrate_case(remote, case_id)
    before = (remote.folder / _ROOT).read_bytes()
    migrating.migrate_root(remote.folder)
    if (remote.folder / _ROOT).read_bytes() != before:
        remote.bucket.put(_ROOT, remote.folder / _ROOT)


def _migrate_case(remote: RemoteStore, case_id: str) -> Receipt:
    remote.fetch_case(case_id)
    if migrating.is_current(layout.case_path(remote.folder, case_id)):
        return Receipt(case_id, "unchanged")
    own = f"{layout.CASES}/{case_id}"
    with fetched_case(remote.path, case_id, whole=True) as root:
        folder = layout.case_path(root, case_id)
        before = {name: layout.file_sha256(folder / name) for name in relative_files(folder)}
        receipt = migrating.migrate_case(root, case_id)
        names = set(relative_files(folder))
        changed = [name for name in names if before.get(name) != layout.file_sha256(folder / name)]
        remote.bucket.upload(folder, [name for name in changed if name != _ROOT], own)
        remote.bucket.put(f"{own}/{_ROOT}", folder / _ROOT)
        remote.bucket.delete(f"{own}/{name}" for name in before.keys() - names)
    return receipt


def _case(store: Path, case_id: str) -> RemoteCase:
    found = RemoteStore(store).case(case_id)
    assert isinstance(found, RemoteCase)
    return found


def _consolidate(store: Path, case_id: str) -> None:
    """Rebuild the consolidated metadata of a case from what lies there now."""
    case = _case(store, case_id)
    before = (case.path / _ROOT).read_bytes()
    layout.consolidate(case.path)
    if (case.path / _ROOT).read_bytes() != before:
        case.remote.bucket.put(f"{layout.CASES}/{case_id}/{_ROOT}", case.path / _ROOT)

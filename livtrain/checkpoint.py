"""State of a run on disk: whole or absent, and verified before it is trusted.

A checkpoint is what `torch.save` writes, followed by a trailer: the magic `LIVSHA256` and the 32 bytes of the
sha256 of all before it. One file then holds both, so one rename publishes both (a sidecar would need two), and
`torch.load` of the plain file still works. torch does not check its own CRCs, hence the hash (reliability.md, 8).
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from livprep.errors import RunError
from livprep.store import sync_path
from livtrain.config import Settings, settings_from

LAST, BEST = "last.pt", "best.pt"
FORMAT = 1
_MAGIC = b"LIVSHA256"
_CONTENT = (
    "network_state", "settings", "preparation", "step", "optimizer_state", "rng", "progress", "cases", "store_digest",
)  # fmt: skip
_TRAILER_BYTES = len(_MAGIC) + hashlib.sha256().digest_size


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that continues a run bit for bit, and all that prediction needs.

    Parameters
    ----------
    network_state
        Weights by name.
    settings
        The run's settings, windows resolved.
    preparation
        `Preparation.as_dict()` of the store; prediction must prepare its scans the same way.
    step
        Optimizer steps done. The next patch has the counter `step * settings.batch * settings.accumulate * world`.
    optimizer_state
        `state_dict` of the optimizer. The learning rate is a function of the step and of `schedule_state`.
    schedule_state
        What a plateau has seen so far.
    scaler_state
        Scale of the loss in fp16; empty otherwise.
    ema_state
        Averaged weights by name; empty where none are kept.
    rng
        Generator states: `cpu`, and `cuda` where it was used; those of rank 1 as `cpu.1`, and so on.
    world
        Processes of the run.
    progress
        Numbers of the run so far: seconds, waiting, best validation.
    cases
        Case ids of the run: `train`, `val`.
    store_digest
        Digest of the cases' metadata; a resumed run must see the same data.
    """

    network_state: dict[str, Tensor]
    settings: Settings
    preparation: dict[str, Any]
    step: int
    optimizer_state: dict[str, Any] = field(default_factory=dict)
    rng: dict[str, Tensor] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    cases: dict[str, list[str]] = field(default_factory=dict)
    store_digest: str = ""
    schedule_state: dict[str, Any] = field(default_factory=dict)
    scaler_state: dict[str, Any] = field(default_factory=dict)
    ema_state: dict[str, Tensor] = field(default_factory=dict)
    world: int = 1

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights to predict with: averaged ones where the run kept them."""
        return self.ema_state or self.network_state

    def save(self, path: Path) -> None:
        """Write the checkpoint by rename; the old file stays whole until then.

        Raises
        ------
        RunError
            DISK_FULL or IO; the old file is untouched.
        """
        buffer = io.BytesIO()
        torch.save(
            {
                "format": FORMAT,
                "network_state": self.network_state,
                "settings": self.settings.model_dump(mode="json"),
                "preparation": self.preparation,
                "step": self.step,
                "optimizer_state": self.optimizer_state,
                "rng": self.rng,
                "progress": self.progress,
                "cases": self.cases,
                "store_digest": self.store_digest,
                "schedule_state": self.schedule_state,
                "scaler_state": self.scaler_state,
                "ema_state": self.ema_state,
                "world": self.world,
            },
            buffer,
        )
        body = buffer.getbuffer()
        _publish(path, [body, _MAGIC + hashlib.sha256(body).digest()])


def run_folders(path: Path) -> tuple[Path, ...]:
    """The runs that a path stands for: itself, or its folds (`fold-0`, ...) where it holds those and no checkpoint."""
    folds = {int(found[1]): each for each in path.glob("fold-*") if (found := re.fullmatch(r"fold-(\d+)", each.name))}
    if not folds or any((path / name).exists() for name in (BEST, LAST)):
        return (path,)
    return tuple(folds[number] for number in sorted(folds))


def load_checkpoint(path: Path | str, prefer: Literal["best", "last"] = "best") -> Checkpoint:
    """Load a checkpoint file, or the preferred good one of a run folder.

    Parameters
    ----------
    path
        A checkpoint file or a run folder. In a folder the other checkpoint is taken, with a warning, where the
        preferred one is missing or damaged.
    prefer
        `best` by validation, or `last` to continue.

    Raises
    ------
    RunError
        RUN_MISSING: nothing to load. CHECKPOINT_CORRUPT: what is there does not match its hash.
    """
    path = Path(path)
    if not path.is_dir():
        return _load_file(path)
    names = (BEST, LAST) if prefer == "best" else (LAST, BEST)
    present = [path / name for name in names if (path / name).is_file()]
    if not present:
        raise RunError("RUN_MISSING", f"{path}: found neither {BEST} nor {LAST}; run `livtrain fit` first")
    for position, candidate in enumerate(present):
        try:
            checkpoint = _load_file(candidate)
        except RunError as error:
            if position + 1 == len(present):
                raise
            warnings.warn(f"{error}; falling back to {present[position + 1].name}", RuntimeWarning, stacklevel=2)
            continue
        if candidate.name != names[0] and position == 0:
            warnings.warn(f"{path}: {names[0]} is missing; {candidate.name} is used", RuntimeWarning, stacklevel=2)
        return checkpoint
    raise AssertionError("unreachable: the last candidate returns or raises")


def _load_file(path: Path) -> Checkpoint:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError("RUN_MISSING", f"{path}: the checkpoint cannot be read ({error.strerror})") from error
    body, trailer = memoryview(data)[:-_TRAILER_BYTES], data[-_TRAILER_BYTES:]
    if trailer != _MAGIC + hashlib.sha256(body).digest():
        raise RunError(
            "CHECKPOINT_CORRUPT",
            f"{path}: {len(data)} bytes do not match the checkpoint's own sha256; use the run's other checkpoint",
        )
    try:
        content = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # a file of unknown origin makes the unpickler raise almost anything
        raise RunError("CHECKPOINT_CORRUPT", f"{path}: the content is no checkpoint of livtrain") from error
    return _parse(path, content)


def _parse(path: Path, content: Any) -> Checkpoint:
    found = content.get("format") if isinstance(content, Mapping) else None
    if found != FORMAT:
        raise RunError(
            "CHECKPOINT_CORRUPT",
            f"{path}: found checkpoint format {found!r}, expected {FORMAT}; update livtrain",
        )
    missing = [name for name in _CONTENT if name not in content]
    if missing or not isinstance(content["settings"], Mapping):
        raise RunError("CHECKPOINT_CORRUPT", f"{path}: lacks {', '.join(missing) or 'settings'}")
    return Checkpoint(
        network_state=content["network_state"],
        settings=settings_from(content["settings"]),
        preparation=content["preparation"],
        step=content["step"],
        optimizer_state=content["optimizer_state"],
        rng=content["rng"],
        progress=content["progress"],
        cases=content["cases"],
        store_digest=content["store_digest"],
        # files of before these were kept have none
        schedule_state=content.get("schedule_state", {}),
        scaler_state=content.get("scaler_state", {}),
        ema_state=content.get("ema_state", {}),
        world=content.get("world", 1),
    )


def _publish(path: Path, parts: list[Any]) -> None:
    """Write parts to a temporary file beside `path`, flush it to the disk and rename it over `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_path(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        needed = sum(len(part) for part in parts)
        raise RunError(
            "DISK_FULL" if full else "IO",
            f"{path}: writing a checkpoint of {needed} bytes failed ({error.strerror}); the one before it is untouched",
        ) from error

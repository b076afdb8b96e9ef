"""What a run will do, decided before it starts: device, cases, windows, patch. Each choice is said in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from livprep.division import NO_LABELS, tumor_burden
from livprep.errors import UsageError
from livprep.prepare import Preparation
from livprep.provenance import digest_of
from livprep.splits import Split, make_split
from livtrain.config import FROM_HU, LEARNED, Settings, parse_windows, resolve
from livtrain.inference.window import computes_bf16
from livtrain.loader import LoaderCase
from livtrain.networks import get_network, multiple_text
from livtrain.sampling import Shape
from livtrain.trainer.distributed import Ranks
from livtrain.trainer.memory import batch_by_memory
from livtrain.unpack import PACKED_HIGH_HU, PACKED_LOW_HU, fits_packed

Say = Callable[[str], None]


class TrainingCase(LoaderCase, Protocol):
    """What a run asks of `livprep.store.CaseStore`."""

    @property
    def patient(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def label_counts(self) -> dict[str, int] | None: ...


class TrainingStore(Protocol):
    """What a run asks of `livprep.store.Store`."""

    @property
    def preparation(self) -> Preparation: ...
    def __getitem__(self, case_id: str, /) -> TrainingCase: ...
    def __iter__(self) -> Any: ...
    def __contains__(self, case_id: object, /) -> bool: ...
    def read_split(self, name: str, /) -> Split | None: ...
    def write_split(self, split: Split, /) -> Any: ...
    def split_names(self) -> list[str]: ...


@dataclass(frozen=True)
class Plan:
    """A run with every choice made."""

    settings: Settings
    cases: Mapping[str, TrainingCase]
    train: tuple[str, ...]
    val: tuple[str, ...]
    preparation: dict[str, Any]
    store_digest: str


def default_preset(device: str) -> str:
    """The preset for a device (`auto` takes CUDA if it is there): `gpu` or `fast-cpu`."""
    return "gpu" if choose_device(device).type == "cuda" else "fast-cpu"


def choose_device(device: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:1` into a device that exists."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError("CONFIG_INVALID", f"device {device!r}: expected auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            "CONFIG_INVALID",
            f"device {device!r}: {torch.cuda.device_count()} CUDA devices found; use --device cpu",
        )
    return chosen


def settings_for_run(
    run_dir: Path | None,
    resume: bool,
    preset: str | None,
    config: Path | None,
    assignments: Sequence[str],
    options: Mapping[str, Any],
    fold: str | None = None,
) -> tuple[Settings, Path]:
    """Join what a command line gives into settings, and name the run's folder (`runs/<stage>`).

    A run that is resumed starts from its own `config.yaml`, so that its settings need not be given again; folds,
    which differ in nothing but their split, are started again with the same options.
    """
    folder = run_dir or Path("runs") / str(options.get("stage") or "liver")
    recorded = folder / "config.yaml"
    if resume and fold is None and config is None and recorded.is_file():
        config = recorded
    device = str(options.get("device") or "auto")
    settings = resolve(
        preset=preset, config=config, assignments=assignments, options=options, fallback_preset=default_preset(device)
    )
    return settings, run_dir or Path("runs") / settings.stage


def agree_on_plan(store: TrainingStore, settings: Settings, ranks: Ranks, say: Say) -> Plan:
    """The plan of every rank: rank 0 makes the choices, the others take them over, each on its own device.

    Raises
    ------
    UsageError
        As `make_plan`, on every rank.
    """
    placed = settings.replace(device=ranks.device(settings.device))
    if ranks.world == 1:
        return make_plan(store, placed, say)
    chosen = ranks.first_decides(lambda: make_plan(store, placed, say, ranks.world).settings)
    return make_plan(store, chosen.replace(device=placed.device), lambda _: None, ranks.world)


def make_plan(store: TrainingStore, settings: Settings, say: Say, world: int = 1) -> Plan:
    """Make every choice that the settings leave open; `world` is the number of processes.

    Raises
    ------
    UsageError
        STORE_EMPTY, SPLIT_INVALID, NO_WINDOWS or CONFIG_INVALID.
    """
    device = choose_device(settings.device)
    say(f"device: {device}; preset: {settings.preset}")
    split = _split(store, settings.split, say)
    train, val = (_labelled(store, part) for part in (split.train, split.val))
    if not train:
        raise UsageError("SPLIT_INVALID", f"split {split.name!r}: none of its training cases is stored with labels")
    held_out = ", ".join(val) if val else "none: trained without validation"
    say(f"split: {split.name}: {len(train)} cases to train, {len(val)} to validate ({held_out})")
    cases = {case_id: store[case_id] for case_id in (*train, *val)}
    settings = _windows(cases, settings, say)
    patch = _clipped(settings, [cases[case_id].shape_zyx for case_id in train])
    clipped = "" if patch == settings.patch_zyx else f", clipped from {_text(settings.patch_zyx)} to the volumes"
    settings = _batch(_precision(settings.replace(patch_zyx=patch), device, say), device, say)
    say(f"patch: {_text(patch)} voxels (zyx){clipped}; {_batch_text(settings, world)}")
    say(f"length: {_length(settings)}; network: {settings.network}, width {settings.width}; loss: {settings.loss}")
    return Plan(
        settings=settings.replace(device=str(device)),
        cases=cases,
        train=train,
        val=val,
        preparation=store.preparation.as_dict(),
        store_digest=_digest(cases),
    )


def _split(store: TrainingStore, name: str, say: Say) -> Split:
    recorded = store.read_split(name)
    if recorded is not None:
        return recorded
    if name != "default":
        known = ", ".join(store.split_names()) or "none"
        raise UsageError("SPLIT_INVALID", f"split {name!r} is not recorded (recorded: {known}); run `livprep split`")
    labelled = _labelled(store, tuple(store))
    if not labelled:
        raise UsageError("STORE_EMPTY", "the store holds no labelled cases; run `livprep ingest` first")
    cases = {case_id: store[case_id] for case_id in labelled}
    split = make_split(  # what `livprep split` makes by default
        {case_id: case.patient for case_id, case in cases.items()},
        name=name,
        fingerprints={case_id: case.fingerprint for case_id, case in cases.items()},
        burden={case_id: tumor_burden(case.label_counts or {}) for case_id, case in cases.items()},
        unused={case_id: NO_LABELS for case_id in store if case_id not in cases},
    )
    store.write_split(split)
    say("split: made and recorded as 'default' (by patient, 20 % to validate, seed 0)")
    return split


def _labelled(store: TrainingStore, case_ids: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(case_id for case_id in case_ids if case_id in store and store[case_id].has_labels)


def _windows(cases: Mapping[str, TrainingCase], settings: Settings, say: Say) -> Settings:
    """Resolve the channels, and check that every case that should hold them does."""
    if isinstance(settings.windows, str):
        named, learned = not settings.windows.startswith(FROM_HU), settings.windows.startswith(LEARNED)
        first = next(iter(cases.values()))
        windows = parse_windows(settings.windows, first.windows)
        settings = settings.replace(windows=windows, learn_windows=settings.learn_windows or learned)
    else:
        named = False
    if named or settings.window_source == "stored" or not settings.bank.is_local:
        for case_id, case in cases.items():
            stored = tuple(case.windows)
            needed = [w for w in settings.bank if named or settings.window_source == "stored" or not w.is_local]
            if missing := [window.name for window in needed if window not in stored]:
                raise UsageError(
                    "NO_WINDOWS",
                    f"case {case_id} does not store the channels {missing}; run `livprep window` again",
                )
    if settings.learn_windows and (
        settings.window_source != "packed" or not all(fits_packed(w) and len(w.parts) == 1 for w in settings.bank)
    ):
        raise UsageError(
            "CONFIG_INVALID",
            f"learned windows start from HU: expected window_source packed and plain windows within {PACKED_LOW_HU} "
            f"... {PACKED_HIGH_HU} HU",
        )
    plain = [f"{w.name} (WL {w.center_hu:g} WW {w.width_hu:g} HU)" for w in settings.bank]
    listed = ", ".join(text if w.is_local else str(w) for text, w in zip(plain, settings.bank, strict=True))
    say(f"windows: {listed}{', learned from there on' if settings.learn_windows else ''}")
    return settings


def _clipped(settings: Settings, shapes: list[Shape]) -> Shape:
    """A patch no larger than the largest volume, rounded up to what the network takes."""
    multiples = get_network(settings.network).multiple_zyx
    if any(size % multiple for size, multiple in zip(settings.patch_zyx, multiples, strict=True)):
        raise UsageError(
            "CONFIG_INVALID",
            f"patch of {_text(settings.patch_zyx)} voxels (zyx) for {settings.network}: {multiple_text(multiples)}",
        )
    z, y, x = (
        min(size, -(-max(lengths) // multiple) * multiple)
        for size, lengths, multiple in zip(settings.patch_zyx, zip(*shapes, strict=True), multiples, strict=True)
    )
    return (z, y, x)


def _precision(settings: Settings, device: torch.device, say: Say) -> Settings:
    """fp16 where bf16 is asked of a device without it; recorded, so that a resumed run has the same."""
    if settings.amp != "bf16" or computes_bf16(device):
        return settings
    say(f"amp: fp16 instead of bf16, which {torch.cuda.get_device_name(device)} does not compute")
    return settings.replace(amp="fp16")


def _batch(settings: Settings, device: torch.device, say: Say) -> Settings:
    """The batch that fits where the settings leave it to the memory; recorded, so that a resumed run has the same."""
    if not settings.batch_by_memory:
        return settings
    batch, needed, free = batch_by_memory(settings, device)
    say(f"batch: {batch} by memory: about {needed / 2**30:.1f} of {free / 2**30:.1f} GiB free")
    return settings.replace(batch=batch, batch_by_memory=False)


def _batch_text(settings: Settings, world: int) -> str:
    """Patches of a step, on how many processes, and the learning rate, which is the same for any number of them."""
    rate, parts = f"learning rate {settings.learning_rate:g}", [str(settings.batch)]
    parts += [f"{settings.accumulate} accumulated"] if settings.accumulate > 1 else []
    parts += [f"{world} processes"] if world > 1 else []
    total = f" = {settings.batch * settings.accumulate * world} patches a step" if len(parts) > 1 else ""
    return f"batch {' x '.join(parts)}{total}; {rate}{', not scaled' if world > 1 else ''}"


def _digest(cases: Mapping[str, TrainingCase]) -> str:
    """Digest of what the cases are; a resumed run must see the same."""
    return digest_of(
        {case_id: {"geometry": case.geometry.as_dict(), "labels": case.label_counts} for case_id, case in cases.items()}
    )


def _length(settings: Settings) -> str:
    limits = [f"{settings.steps} steps" if settings.steps else "", f"{settings.time_s:g} s" if settings.time_s else ""]
    return " or ".join(limit for limit in limits if limit)


def _text(shape_zyx: Shape) -> str:
    return "x".join(str(size) for size in shape_zyx)

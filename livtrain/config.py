"""Settings of a training run: typed, frozen, and the same after every resume.

Values come from five places, later ones win: defaults of `Settings`, the preset, `--config`, `--set`, options.
`resolve` joins them; `dump_yaml` writes what the run then records as `config.yaml`, which `--config` reads back.
This module imports no torch, so that `--help` and completion stay fast.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from livprep.channels import channel_of
from livprep.errors import UsageError
from livprep.windows import FUNCTION, Window, WindowBank
from livtrain.augment_config import AugmentSettings
from livtrain.presets import PRESETS

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Shape = tuple[int, int, int]
LEARNED = "learned:"
FROM_HU = ("hu:", LEARNED)
"""What `--windows` starts with where channels are made of HU, and need not be stored."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WindowSetting(_Frozen):
    """One input channel: a window of HU, by level and width in HU; others by their function (`livprep.channels`)."""

    name: str
    wl: float
    ww: float
    function: str = FUNCTION
    parameters: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, window: Window) -> WindowSetting:
        """The setting that describes a window."""
        return cls(
            name=window.name,
            wl=window.center_hu,
            ww=window.width_hu,
            function=window.function,
            parameters=window.parameters,
        )

    def window(self) -> Window:
        """The window that the setting describes."""
        return channel_of(self.name, self.wl, self.ww, self.function, self.parameters)

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A linear window is recorded by name, level and width alone."""
        record: dict[str, Any] = handler(self)
        return record if self.function != FUNCTION else {key: record[key] for key in ("name", "wl", "ww")}


class SamplingSettings(_Frozen):
    """Odds of the four kinds of patches; they need not sum to 1.

    `tumor` and `liver` patches contain a voxel of that label, `near` patches one outside of the liver and within
    20 mm of it, `anywhere` patches lie uniformly in the volume.
    """

    tumor: float = Field(default=0.0, ge=0)
    liver: float = Field(default=0.0, ge=0)
    near: float = Field(default=0.0, ge=0)
    anywhere: float = Field(default=0.0, ge=0)


class SupervisionSettings(_Frozen):
    """Weight of the coarse outputs in the loss: alpha, times `decay` each `decay_every` of the run (fraction)."""

    alpha: float = Field(default=0.33, ge=0)
    decay: float = Field(default=0.8, gt=0, le=1)
    decay_every: float = Field(default=0.04, gt=0, le=1)


class Settings(_Frozen):
    """All that decides a training run.

    Lengths of the run are in optimizer steps; patches are voxels along z, y, x. A run ends at `steps` or after
    `time_s` seconds, whichever comes first; None is no limit. `milestones`, `warmup` and `frozen` (the time that
    pretrained layers are not trained) are fractions of the run. A step sees `accumulate` batches of `batch` patches,
    or, with `batch_by_memory`, of as many as fit into the device's memory.

    `width` 16 is each network's published size, `dropout` is the network's own where it is None, and `ema` the decay
    of averaged weights, which are then validated and predict. `background` counts the background as a class of region
    losses, `class_weights` are those of the loss `wce`. `patience` counts validations without a better Dice (schedule
    `plateau`). `channels_last` None is: on a CPU.

    `windows` is `stored` (every stored channel in store order), names of stored channels, `hu:LEVEL/WIDTH,...`, or,
    once resolved, the list itself. `window_source` says whether channels are derived from the packed HU (`packed`,
    the same bytes) or read as stored (`stored`).

    `loader_tier` says where voxels lie between two patches (`device`, decoded in `ram` up to `ram_budget_gb`, or on
    `disk`; `auto` chooses from sizes); the patches are the same. `patches_per_read` > 1 makes that many patches in a
    row neighbors, which spares decoding and makes batches less varied. `loader_threads` 0 reads in the loop itself.

    `learn_windows` (`--windows learned:40/220`) makes center and width parameters that start there; `window_softness`
    mixes in a sigmoid, which has a gradient outside of the window too.

    Held-out cases are scored every `validate_every` steps, as long as that takes no more than `validation_share` of
    the run's time (null: always; then the scores of a run repeat exactly). The best weights are those with the
    highest running mean of the validation Dice, of which each validation keeps `dice_ema`; after `early_stop`
    validations without a better one the run ends. `amp` `fp64` computes in double precision, for proofs.
    """

    stage: Literal["liver", "tumor", "multiclass"] = "liver"
    preset: str = "gpu"
    network: str = "resunet"
    width: int = Field(default=16, ge=1)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    pretrained: bool = False
    frozen: float = Field(default=0.0, ge=0, lt=1)
    loss: str = "tversky"
    background: bool = False
    class_weights: tuple[float, ...] | None = None
    windows: str | tuple[WindowSetting, ...] = "stored"
    window_source: Literal["packed", "stored"] = "packed"
    learn_windows: bool = False
    window_softness: float = Field(default=0.0, ge=0, le=1)
    split: str = "default"
    patch_zyx: Shape = (48, 256, 256)
    batch: int = Field(default=2, ge=1)
    batch_by_memory: bool = False
    accumulate: int = Field(default=1, ge=1)
    steps: int | None = Field(default=40_000, ge=1)
    time_s: float | None = Field(default=None, gt=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    momentum: float = Field(default=0.9, gt=0, lt=1)
    schedule: Literal["multistep", "poly", "cosine", "plateau", "one_cycle", "constant"] = "multistep"
    milestones: tuple[float, ...] = (0.5, 0.75)
    patience: int = Field(default=3, ge=1)
    warmup: float = Field(default=0.0, ge=0, lt=1)
    gradient_clip: float | None = Field(default=None, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    ema: float | None = Field(default=None, gt=0, lt=1)
    supervision: SupervisionSettings = SupervisionSettings()
    sampling: SamplingSettings | None = None
    augment: AugmentSettings = AugmentSettings()
    seed: int = Field(default=0, ge=0)
    deterministic: bool = False
    device: str = "auto"
    amp: Literal["none", "bf16", "fp16", "fp64"] = "none"
    channels_last: bool | None = None
    compile: bool = False
    activation_checkpointing: bool = False
    loader_threads: int = Field(default=2, ge=0)
    loader_tier: Literal["auto", "device", "ram", "disk"] = "auto"
    ram_budget_gb: float | None = Field(default=None, gt=0)
    patches_per_read: int = Field(default=1, ge=1)
    prefetch: int = Field(default=4, ge=1)
    validate_every: int = Field(default=1000, ge=0)
    validation_share: float | None = Field(default=None, gt=0, le=1)
    validation_cases: int | None = Field(default=None, ge=1)
    dice_ema: float = Field(default=0.9, ge=0, lt=1)
    early_stop: int | None = Field(default=None, ge=1)
    train_dice_cases: int = Field(default=2, ge=0)
    overlap: float = Field(default=0.5, ge=0, lt=1)
    log_every: int = Field(default=10, ge=1)
    checkpoint_s: float = Field(default=60.0, ge=0)

    @field_validator("patch_zyx")
    @classmethod
    def _positive(cls, patch: Shape) -> Shape:
        if min(patch) < 1:
            raise ValueError(f"patch {patch}: expected positive sizes in voxels along z, y, x")
        return patch

    @field_validator("preset")
    @classmethod
    def _known(cls, preset: str) -> str:
        if preset not in PRESETS:
            raise ValueError(f"preset {preset!r}: expected one of {', '.join(PRESETS)}")
        return preset

    @field_validator("windows")
    @classmethod
    def _not_empty(cls, windows: str | tuple[WindowSetting, ...]) -> str | tuple[WindowSetting, ...]:
        if not windows:
            raise ValueError("windows: expected 'stored', names, hu:LEVEL/WIDTH or a list that is not empty")
        return windows

    @model_validator(mode="after")
    def _ends(self) -> Settings:
        if self.steps is None and self.time_s is None:
            raise ValueError("steps and time_s are both open; expected a limit for the run")
        if (self.schedule == "plateau" or self.early_stop) and not self.validate_every:
            raise ValueError("schedule plateau and early_stop watch validations; expected validate_every above 0")
        return self

    @property
    def bank(self) -> WindowBank:
        """The windows in channel order; only after they were resolved against a store."""
        if isinstance(self.windows, str):
            raise UsageError("CONFIG_INVALID", f"windows {self.windows!r} are not resolved against a store yet")
        return WindowBank(tuple(setting.window() for setting in self.windows))

    def replace(self, **changes: Any) -> Settings:
        """A copy with some values changed, validated again."""
        return _validated({**self.model_dump(), **changes})

    def dump_yaml(self) -> str:
        """The settings as YAML, in the order of the fields; `--config` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, default_flow_style=None)


def resolve(
    *,
    preset: str | None = None,
    config: Path | None = None,
    assignments: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    fallback_preset: str = "gpu",
) -> Settings:
    """Join preset, YAML file, `key=value` assignments and options into settings.

    A time without a number of steps lifts the preset's limit of steps: the schedule then spans the time.

    Parameters
    ----------
    preset
        Name of a preset; without one, the file's, else `fallback_preset` (which the caller chose by device).
    config
        YAML file with keys of `Settings`.
    assignments
        `key=value`, the value in YAML; dots reach into groups (`augment.noise=0`).
    options
        Values of options that were given; None counts as not given.

    Raises
    ------
    UsageError
        CONFIG_INVALID: a key is unknown or duplicate, or a value is out of range.
    """
    given = _read_config(config) if config is not None else {}
    for text in assignments:
        given = _merged(given, _assignment(text))
    given = _merged(given, {key: value for key, value in (options or {}).items() if value is not None})
    name = preset or given.get("preset") or fallback_preset
    if name not in PRESETS:
        raise UsageError("CONFIG_INVALID", f"preset {name!r}: expected one of {', '.join(PRESETS)}")
    lengths = {"steps": None} if given.get("time_s") is not None and "steps" not in given else {}
    return _validated(_merged(PRESETS[name], {**lengths, **given, "preset": name}))


def settings_from(data: Mapping[str, Any]) -> Settings:
    """Read the form of `Settings.model_dump`, as a checkpoint holds it."""
    return _validated(dict(data))


def load_settings(path: Path) -> Settings:
    """Read a resolved `config.yaml` without joining a preset."""
    return _validated(_read_config(path))


def parse_windows(text: str, stored: WindowBank) -> tuple[WindowSetting, ...]:
    """Turn `--windows` into channels: `stored`, names of stored channels, or `hu:` (`learned:`) LEVEL/WIDTH,... in HU.

    Raises
    ------
    UsageError
        NO_WINDOWS: nothing is stored. CONFIG_INVALID: a name is not stored or the text does not parse.
    """
    if text.startswith(FROM_HU):
        pairs = [re.fullmatch(r"\s*(-?[\d.]+)/([\d.]+)\s*", part) for part in text.partition(":")[2].split(",")]
        if not all(pairs):
            raise UsageError(
                "CONFIG_INVALID", f"windows {text!r}: expected hu:LEVEL/WIDTH,... in HU, as hu:40/220,60/140"
            )
        windows = [Window(float(pair[1]), float(pair[2])) for pair in pairs if pair]
        return tuple(WindowSetting.of(window) for window in WindowBank(tuple(windows)))
    if not len(stored):
        raise UsageError(
            "NO_WINDOWS",
            "the store holds no windowed channels; run `livprep window --wl 40 --ww 220` first, "
            "or pass --windows hu:40/220",
        )
    by_name = {window.name: window for window in stored}
    names = list(by_name) if text == "stored" else [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in by_name]:
        raise UsageError("CONFIG_INVALID", f"windows {unknown}: the store holds {', '.join(by_name)}")
    return tuple(WindowSetting.of(by_name[name]) for name in names)


def parse_duration_s(text: str) -> float:
    """Seconds of a duration such as `90`, `45s`, `20m`, `2h` or `1h30m`."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if match is None or not any(match.groups()):
        raise UsageError("USAGE", f"time {text!r}: expected a duration such as 90s, 20m, 2h or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    if (total := 3600 * hours + 60 * minutes + seconds) <= 0:
        raise UsageError("USAGE", f"time {text!r}: expected a positive duration")
    return total


_YAML_FAULTS = (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError)
"""PyYAML passes on what a scalar's own type raises: a 13th month, a number of 5000 digits, a key that is a list."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys; PyYAML keeps the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key: Hashable = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except _YAML_FAULTS as error:
        raise UsageError("CONFIG_INVALID", f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UsageError("CONFIG_INVALID", f"{path}: found {type(data).__name__}, expected a mapping of settings")
    return data


def _assignment(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError("CONFIG_INVALID", f"--set {text!r}: expected key=value")
    try:
        parsed: Any = yaml.load(value, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except _YAML_FAULTS as error:
        raise UsageError("CONFIG_INVALID", f"--set {text!r}: {' '.join(str(error).split())}") from error
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    assert isinstance(parsed, dict)
    return parsed


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _validated(data: Mapping[str, Any]) -> Settings:
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}{_nearest(fault)}" for fault in error.errors()
        )
        raise UsageError("CONFIG_INVALID", f"settings: {faults}") from error


def _nearest(fault: ErrorDetails) -> str:
    """For an unknown key: the known one that is most like it."""
    if fault["type"] != "extra_forbidden":
        return ""
    model: type[BaseModel] = Settings
    *groups, key = map(str, fault["loc"])
    for group in groups:
        nested = [a for a in _types_of(model, group) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not nested:
            return ""
        model = nested[0]
    near = difflib.get_close_matches(key, model.model_fields, n=1, cutoff=0.0)
    return f"; the nearest key is {'.'.join([*groups, *near])}"


def _types_of(model: type[BaseModel], name: str) -> tuple[Any, ...]:
    """The type of a field, or the members of its union."""
    annotation = model.model_fields[name].annotation if name in model.model_fields else None
    return get_args(annotation) or (annotation,)

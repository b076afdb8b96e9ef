"""A run on one page (`livtrain report RUN`): what it was, its curves, its worst held-out cases, its pictures."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from livprep.errors import RunError
from livprep.provenance import package_version
from livtrain.config import Settings, load_settings

_PICTURES = (
    ("loss.png", "Training loss", "Pale: every step; dark: running mean."),
    ("dice.png", "Validation Dice", "Whole held-out cases through the sliding window, mean over cases."),
)
_SHOWN = ("stage", "network", "preset", "loss", "learning_rate", "batch", "accumulate", "patch_zyx", "seed", "device")
_MANY = 20


@dataclass(frozen=True)
class HeldOut:
    """Dice of a held-out case at the last and at its best validation."""

    case: str
    structure: str
    last: float | None
    best: float
    best_step: int


def write_run_page(run: Path, output: Path | None = None) -> Path:
    """Write the page of a run folder.

    Parameters
    ----------
    run
        Folder that `livtrain fit` wrote, finished or not.
    output
        An `.html` file, or a folder for `report.html`; the run's own folder without.

    Raises
    ------
    RunError
        RUN_MISSING: the folder holds no run.
    """
    if not (run / "config.yaml").is_file():
        raise RunError("RUN_MISSING", f"{run}: holds no config.yaml; expected the folder of a `livtrain fit`")
    settings = load_settings(run / "config.yaml")
    records = read_records(run / "metrics.jsonl")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    template = environment.from_string(
        resources.files("livtrain.evaluate").joinpath("run_page.html").read_text("utf-8")
    )
    held_out = worst_first(records)
    text = template.render(
        run=run.resolve().name,
        facts=_facts(settings, _summary(run / "summary.json"), records),
        settings={name: getattr(settings, name) for name in _SHOWN},
        windows=_windows(settings),
        curves=[(title, note, _inline(run / name)) for name, title, note in _PICTURES if (run / name).is_file()],
        held_out=held_out[:_MANY],
        left_out=max(0, len(held_out) - _MANY),
        previews=_previews(run, held_out),
        config=(run / "config.yaml").read_text(encoding="utf-8"),
        version=package_version(),
    )
    target = output or run
    target = target if target.suffix.lower() in (".html", ".htm") else target / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}.part")
    staged.write_text(text, encoding="utf-8")
    staged.replace(target)
    return target


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of `metrics.jsonl` up to a line that a kill tore."""
    records: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def worst_first(records: Sequence[Mapping[str, Any]]) -> list[HeldOut]:
    """Held-out cases, the lowest Dice of the last validation first; those it could not score come last."""
    seen: dict[tuple[str, str], list[tuple[int, float]]] = {}
    last: dict[tuple[str, str], float | None] = {}
    for record in records:
        for case, scores in (record.get("cases") or {}).items():
            for structure, value in _scores(scores).items():
                last[case, structure] = value
                if value is not None:
                    seen.setdefault((case, structure), []).append((int(record["step"]), value))
    found = []
    for (case, structure), values in seen.items():
        step, best = max(values, key=lambda entry: (entry[1], -entry[0]))
        found.append(HeldOut(case, structure, last[case, structure], best, step))
    return sorted(found, key=lambda each: (each.last is None, each.last or 0.0, each.case))


def _scores(scores: Any) -> dict[str, float | None]:
    return dict(scores) if isinstance(scores, Mapping) else {"": scores}


def _summary(path: Path) -> dict[str, Any]:
    """What the run came to; nothing while it goes."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return data


def _facts(
    settings: Settings, summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, str]]:
    """Cards: name, value, remark."""
    steps = summary.get("steps") or (records[-1]["step"] if records else 0)
    best, step = summary.get("best_val_dice"), summary.get("best_step")
    waited = summary.get("data_wait_fraction")
    return [
        ("stage", settings.stage, settings.network),
        ("steps", f"{steps:,}", str(summary.get("stopped_by", "not finished"))),
        ("best validation Dice", _number(best), "" if step is None else f"at step {step:,}"),
        (
            "patches/s",
            _number(summary.get("patches_per_s"), 1),
            "" if waited is None else f"{waited:.1%} waiting for data",
        ),
        (
            "time",
            "–" if "seconds" not in summary else f"{summary['seconds'] / 60:.1f} min",
            str(summary.get("device", "")),
        ),
        ("parameters", f"{summary['parameters']:,}" if "parameters" in summary else "–", ""),
    ]


def _windows(settings: Settings) -> list[str]:
    return [settings.windows] if isinstance(settings.windows, str) else [str(window) for window in settings.bank]


def _previews(run: Path, held_out: Sequence[HeldOut]) -> list[tuple[str, str]]:
    """Pictures as the trainer drew them, the worst case first."""
    rank = {each.case: k for k, each in reversed(list(enumerate(held_out)))}
    files = sorted((run / "previews").glob("*.png"), key=lambda path: (rank.get(path.stem, len(rank)), path.stem))
    return [(path.stem, _inline(path)) for path in files]


def _inline(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


__all__ = ["HeldOut", "read_records", "worst_first", "write_run_page"]

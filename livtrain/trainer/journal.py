"""What a run writes while it goes: metrics as JSON lines, CSV and TensorBoard events, curves, previews."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from livtrain.figures import draw_curves, draw_preview
from livtrain.trainer.validation import CaseScore

MAX_PREVIEWS = 4


class Journal:
    """Appends records to `metrics.jsonl`; everything else in the folder is derived from it.

    Parameters
    ----------
    run_dir
        The run's folder.
    step
        Steps of the checkpoint that the run starts from; later records, of steps that will be done again, are
        dropped.
    """

    def __init__(self, run_dir: Path, step: int = 0) -> None:
        # torch.utils.tensorboard takes a second to import; nothing but a run needs it
        from torch.utils.tensorboard import SummaryWriter

        self._dir = run_dir
        self._path = run_dir / "metrics.jsonl"
        self.records = [record for record in _read(self._path) if record["step"] <= step]
        _replace(self._path, "".join(_line(record) for record in self.records))
        self._file = self._path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(run_dir), purge_step=step + 1 if step else None)

    def record(self, step: int, values: Mapping[str, float], cases: Mapping[str, Any] | None = None) -> None:
        """Append one record; `values` become curves in TensorBoard, `cases` go to the JSON lines alone."""
        record = {"step": step, **values, **({"cases": cases} if cases else {})}
        self.records.append(record)
        self._file.write(_line(record))
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def publish(self) -> None:
        """Write `metrics.csv`, `loss.png` and `dice.png` from the records."""
        names = dict.fromkeys(name for record in self.records for name in record if name != "cases")
        text = io.StringIO()
        writer = csv.DictWriter(text, list(names), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _finite(value) for key, value in record.items()} for record in self.records)
        _replace(self._dir / "metrics.csv", text.getvalue())
        draw_curves(self._dir / "loss.png", "Training loss", "loss", {"loss": self.curve("loss")}, smooth=True)
        dice = {name: self.curve(name) for name in names if name.startswith("val_dice")}
        draw_curves(self._dir / "dice.png", "Validation Dice (whole held-out cases)", "Dice", dice)
        self._events.flush()

    def preview(self, scores: Sequence[CaseScore]) -> None:
        """Draw `previews/<case>.png` of the first few scored cases."""
        folder = self._dir / "previews"
        folder.mkdir(exist_ok=True)
        for score in scores[:MAX_PREVIEWS]:
            dice = ", ".join(f"{name} {value:.3f}" for name, value in score.dice.items())
            draw_preview(
                folder / f"{score.case_id}.png",
                f"{score.case_id}: Dice {dice}",
                score.image_ZYX,
                score.reference_ZYX,
                score.predicted_ZYX,
                score.spacing_mm,
            )

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of all records that hold a finite value of that name."""
        return [(r["step"], r[name]) for r in self.records if _finite(r.get(name)) is not None]

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._file.close()
        self._events.close()


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object by rename; numbers that are not finite become null."""
    _replace(path, json.dumps(_plain(data), indent=2, allow_nan=False) + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    """Records of a file whose last line may be torn by a kill."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_plain(record), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(below) for key, below in value.items()}
    return _finite(value)


def _finite(value: Any) -> Any:
    """The value, or None where it is a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

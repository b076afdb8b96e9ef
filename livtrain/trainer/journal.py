"""What a run writes while it goes: metrics as JSON lines, CSV and TensorBoard events, curves, previews."""

from __future__ import annotations

import csv
import io
import json
import math
import struct
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
    writes
        False for the other ranks of a run: they keep records, and draw the previews of the cases that they scored.
    """

    def __init__(self, run_dir: Path, step: int = 0, *, writes: bool = True) -> None:
        self._dir, self._writes = run_dir, writes
        self._path = run_dir / "metrics.jsonl"
        self.records = [record for record in _read(self._path) if record["step"] <= step]
        if not writes:
            return
        # torch.utils.tensorboard takes a second to import; nothing but a run needs it
        from torch.utils.tensorboard import SummaryWriter

        replace_text(self._path, "".join(_line(record) for record in self.records))
        self._file = self._path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(run_dir), purge_step=step + 1 if step else None)

    def record(self, step: int, values: Mapping[str, float], cases: Mapping[str, Any] | None = None) -> None:
        """Append one record; `values` become curves in TensorBoard, `cases` go to the JSON lines alone."""
        record = {"step": step, **values, **({"cases": cases} if cases else {})}
        self.records.append(record)
        if not self._writes:
            return
        self._file.write(_line(record))
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def publish(self) -> None:
        """Write `metrics.csv`, `loss.png` and `dice.png` from the records."""
        if not self._writes:
            return
        names = dict.fromkeys(name for record in self.records for name in record if name != "cases")
        text = io.StringIO()
        writer = csv.DictWriter(text, list(names), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _finite(value) for key, value in record.items()} for record in self.records)
        replace_text(self._dir / "metrics.csv", text.getvalue())
        draw_curves(self._dir / "loss.png", "Training loss", "loss", {"loss": self.curve("loss")}, smooth=True)
        dice = {name: self.curve(name) for name in names if name.startswith("val_dice")}
        draw_curves(self._dir / "dice.png", "Validation Dice (whole held-out cases)", "Dice", dice)
        self._events.flush()

    def preview(self, scores: Sequence[CaseScore], step: int) -> None:
        """Draw `previews/<case>.png`, and show it in TensorBoard."""
        folder = self._dir / "previews"
        folder.mkdir(exist_ok=True)
        for score in scores:
            path = folder / f"{score.case_id}.png"
            dice = ", ".join(f"{name} {value:.3f}" for name, value in score.dice.items())
            draw_preview(
                path,
                f"{score.case_id}: Dice {dice}",
                score.image_ZYX,
                score.reference_ZYX,
                score.predicted_ZYX,
                score.spacing_mm,
            )
            if self._writes:
                self._show(f"previews/{score.case_id}", path.read_bytes(), step)

    def _show(self, tag: str, png: bytes, step: int) -> None:
        """A PNG as it is; `add_image` would decode and encode it."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = struct.unpack(">II", png[16:24])  # of the header chunk, which comes first (PNG, 11.2.2)
        image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._events._get_file_writer().add_summary(summary, step)  # type: ignore[no-untyped-call]

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of all records that hold a finite value of that name."""
        return [(r["step"], r[name]) for r in self.records if _finite(r.get(name)) is not None]

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._writes:
            self._file.close()
            self._events.close()


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object by rename; numbers that are not finite become null."""
    replace_text(path, json.dumps(_plain(data), indent=2, allow_nan=False) + "\n")


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


def replace_text(path: Path, text: str) -> None:
    """Write a text by rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

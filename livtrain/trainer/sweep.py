"""The window search: a grid of levels and widths, one short training a cell, the best on validation tried on test.

Unet_Window's experiment (method.md, section 1) chose its window on the cases that it is reported on. Here every cell
has the same seed, patches and number of steps, the choice falls on validation, and the test cases are scored for the
chosen cell alone. Each cell is an ordinary run folder, so a search that was stopped goes on where it was, and several
machines can share one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from livprep.errors import UsageError
from livprep.provenance import digest_of
from livprep.windows import Window
from livtrain.checkpoint import load_checkpoint
from livtrain.config import Settings
from livtrain.figures import draw_heat_map
from livtrain.model import build_model
from livtrain.stages import get_stage
from livtrain.trainer.distributed import Ranks, joined
from livtrain.trainer.journal import replace_text, write_json
from livtrain.trainer.loop import fit
from livtrain.trainer.plan import Say, TrainingStore, choose_device
from livtrain.trainer.summary import StepReport
from livtrain.trainer.validation import mean_dice, validate

PUBLISHED = {
    "liver": ((30.0, 50.0), (200.0, 240.0)),
    "tumor": ((50.0, 70.0), (130.0, 150.0)),
}
"""Levels and widths (HU) that Unet_Window's search found best, by stage (method.md, section 1)."""
MOST_CELLS = 400
_CELL, _TEST = "cell.json", "test.json"


@dataclass(frozen=True)
class Cell:
    """One cell; Dice is None until it is trained, and where no held-out case has the structure."""

    wl: float
    ww: float
    val_dice: float | None = None
    best_step: int | None = None
    steps: int | None = None
    seconds: float | None = None
    run: str = ""

    @property
    def name(self) -> str:
        """Name of its run folder."""
        return Window(self.wl, self.ww).name


@dataclass(frozen=True)
class Sweep:
    """What a search has come to: its cells, the best on validation once all are trained, and its Dice on test."""

    stage: str
    cells: tuple[Cell, ...]
    chosen: Cell | None = None
    test_dice: float | None = None
    test_cases: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Cells that are not trained yet."""
        return tuple(cell.name for cell in self.cells if cell.steps is None)


def parse_values(text: str, what: str) -> tuple[float, ...]:
    """Numbers in HU: `30,40,50`, or `200:240:20` for 200, 220, 240 (the end is included), or both mixed.

    Raises
    ------
    UsageError
        The text does not parse, or a number comes twice.
    """
    values: list[float] = []
    try:
        for part in text.split(","):
            numbers = [float(number) for number in part.split(":")]
            if len(numbers) == 1:
                values += numbers
                continue
            first, last, step = numbers
            if not (step > 0 and last >= first) or (last - first) / step > MOST_CELLS:
                raise ValueError
            values += [first + k * step for k in range(int((last - first) / step + 1e-9) + 1)]
    except ValueError:
        values = []
    if not values or len(set(values)) < len(values):
        raise UsageError("USAGE", f"--{what} {text!r}: expected numbers in HU, as 30,40,50 or 200:240:20")
    return tuple(sorted(values))


def grid(levels: Sequence[float], widths: Sequence[float]) -> tuple[Cell, ...]:
    """All cells, by level and then width.

    Raises
    ------
    UsageError
        More than `MOST_CELLS`, or a width that is not positive.
    """
    if len(levels) * len(widths) > MOST_CELLS or min(widths) <= 0:
        raise UsageError(
            "USAGE",
            f"{len(levels)} levels and {len(widths)} widths from {min(widths):g} HU: expected widths above 0 and at "
            f"most {MOST_CELLS} cells",
        )
    return tuple(Cell(wl, ww) for wl in levels for ww in widths)


def run_sweep(
    store: TrainingStore,
    settings: Settings,
    cells: Sequence[Cell],
    out: Path,
    *,
    part: tuple[int, int] = (1, 1),
    say: Say = lambda _: None,
    on_step: Callable[[StepReport], None] = lambda _: None,
) -> Sweep:
    """Train the cells of a part that are not trained yet, and write the table and the map of all.

    Parameters
    ----------
    settings
        Of every cell; the windows are replaced.
    cells
        The whole grid, in the same order on every machine.
    out
        Folder of the search: a run folder for each cell, `sweep.csv`, `sweep.json`, `heat_map.png`.
    part
        (I, N): the I-th of every N cells, I from 1.

    Raises
    ------
    UsageError
        No validation cases, or a cell was trained with other settings.
    RunError
        As `fit`; a search that was stopped goes on when it is started again.
    """
    number, count = part
    with joined(settings.device) as ranks:
        mine = cells[number - 1 :: count]
        for position, cell in enumerate(mine, start=1):
            folder, own = out / cell.name, settings.replace(windows=f"hu:{cell.wl:g}/{cell.ww:g}")
            wanted = digest_of(own.model_dump(mode="json", exclude={"device", "loader_threads", "checkpoint_s"}))
            if ranks.first_decides(partial(_finished, folder, wanted)):
                continue
            if ranks.first:
                say(f"cell {position} of {len(mine)}: {cell.name}")
            summary = fit(store, own, folder, resume=True, say=say, on_step=on_step)
            if not summary.val_cases:
                raise UsageError("SPLIT_INVALID", "sweep: no validation cases, expected some to choose by")
            result = Cell(
                cell.wl, cell.ww, summary.best_val_dice, summary.best_step, summary.steps, summary.seconds, str(folder)
            )
            if ranks.first:
                write_json(folder / _CELL, {"settings": wanted, **asdict(result)})
        return ranks.first_decides(lambda: _conclude(store, settings, cells, out, ranks, say))


def _finished(folder: Path, wanted: str) -> bool:
    """Whether a cell is trained.

    Raises
    ------
    UsageError
        CONFIG_INVALID: with other settings.
    """
    found = _read(folder / _CELL)
    if found and found["settings"] != wanted:
        raise UsageError(
            "CONFIG_INVALID", f"{folder}: this cell was trained with other settings; choose another --out folder"
        )
    return bool(found)


def _conclude(
    store: TrainingStore, settings: Settings, cells: Sequence[Cell], out: Path, ranks: Ranks, say: Say
) -> Sweep:
    """Choose and score if every cell is trained, and write what is known."""
    while True:
        sweep = Sweep(settings.stage, tuple(_read_cell(out, cell) for cell in cells))
        known = [cell for cell in sweep.cells if cell.val_dice is not None]
        if not sweep.missing and known:
            # the first of equals in the grid's order; which machine asks makes no difference
            chosen = max(known, key=lambda cell: cell.val_dice or 0.0)
            dice, tested = _test(store, settings, chosen, out, ranks, say)
            sweep = Sweep(sweep.stage, sweep.cells, chosen, dice, tested)
        _publish(sweep, out)
        if tuple(_read_cell(out, cell) for cell in cells) == sweep.cells:
            return sweep  # nobody finished a cell meanwhile, so nobody's table is overwritten by an older one


def _test(
    store: TrainingStore, settings: Settings, chosen: Cell, out: Path, ranks: Ranks, say: Say
) -> tuple[float | None, tuple[str, ...]]:
    """Mean Dice of the chosen cell's best weights on the test cases; None where the split has none."""
    path = out / _TEST
    known = _read(path)
    if known and known["cell"] == chosen.name:
        return known["dice"], tuple(known["cases"])
    split = store.read_split(settings.split)
    cases = {name: store[name] for name in (split.test if split else ()) if name in store and store[name].has_labels}
    if not cases:
        say("sweep: the split has no test cases; nothing is reported on them (livprep split --test 0.2)")
        return None, ()
    checkpoint = load_checkpoint(out / chosen.name)
    own = checkpoint.settings.replace(device=str(choose_device(ranks.device(settings.device))))
    network = build_model(own, get_stage(own.stage).out_channels)
    network.load_state_dict(checkpoint.weights)
    spacings = {name: case.geometry.spacing_mm for name, case in cases.items()}
    scores = validate(network, cases, spacings, list(cases), own, lambda: False)
    dice = mean_dice([score.dice for score in scores])["mean"]
    found = {"cell": chosen.name, "dice": dice, "cases": list(cases), "by_case": {s.case_id: s.dice for s in scores}}
    write_json(path, found)
    return (dice if dice == dice else None), tuple(cases)


def _publish(sweep: Sweep, out: Path) -> None:
    """Write `sweep.csv`, `sweep.json` and `heat_map.png`, each whole."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(sweep.cells[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(cell) for cell in sweep.cells)
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / "sweep.csv", text.getvalue())
    write_json(out / "sweep.json", asdict(sweep))
    chosen = None if sweep.chosen is None else (sweep.chosen.wl, sweep.chosen.ww)
    draw_heat_map(
        out / "heat_map.png",
        f"{sweep.stage}: validation Dice by window",
        {(cell.wl, cell.ww): cell.val_dice for cell in sweep.cells},
        chosen,
        PUBLISHED.get(sweep.stage),
    )


def _read_cell(out: Path, cell: Cell) -> Cell:
    found = _read(out / cell.name / _CELL)
    return Cell(**{key: value for key, value in found.items() if key != "settings"}) if found else cell


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

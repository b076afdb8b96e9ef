"""`livtrain sweep`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livcli.options import Part, output_options, say, store_option

if TYPE_CHECKING:
    from livtrain.trainer.sweep import Sweep


@click.command(
    epilog="Example: livtrain sweep --stage liver --wl 30,40,50 --ww 200:240:20 --steps 400",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@store_option
@click.option(
    "--wl", "levels", default="30,40,50", show_default=True, metavar="HU,...", help="Levels: 30,40 or 30:50:10."
)
@click.option("--ww", "widths", default="200:240:20", show_default=True, metavar="HU,...", help="Widths, likewise.")
@click.option("--stage", type=click.Choice(["liver", "tumor", "multiclass"]), help="What to learn.  [default: liver]")
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps of each cell.  [default: by preset]")
@click.option("--part", type=Part(), help="Train the I-th of every N cells: one SLURM task a cell with N = cells.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder.  [default: runs/sweep-<stage>]"
)
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="YAML with settings.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting of every cell.")
@click.option("--preset", help="As of fit.  [default: by device]")
@click.option("--network", help="As of fit.")
@click.option("--loss", help="As of fit.")
@click.option("--split", help="Name of a recorded split.  [default: default]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of every cell.  [default: 0]")
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@output_options
def sweep(
    store: Path,
    levels: str,
    widths: str,
    part: tuple[int, int] | None,
    out: Path | None,
    config: Path | None,
    assignments: tuple[str, ...],
    preset: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Search the window: a short training for each level and width, the best on validation scored on test.

    Every cell has the same seed, patches and steps. OUT holds a run folder for each cell, sweep.csv, sweep.json and
    heat_map.png, where the published optimum is marked. Started again, it passes over the cells that are finished.
    """
    from livprep.store import open_store
    from livtrain.trainer.plan import settings_for_run
    from livtrain.trainer.sweep import grid, parse_values, run_sweep

    settings, _ = settings_for_run(None, False, preset, config, assignments, options)
    cells = grid(parse_values(levels, "wl"), parse_values(widths, "ww"))
    folder = out or Path("runs") / f"sweep-{settings.stage}"
    found = run_sweep(
        open_store(store), settings, cells, folder, part=part or (1, 1), say=lambda line: say(quiet, line)
    )
    if as_json:
        click.echo(json.dumps({**asdict(found), "missing": found.missing}))
    else:
        _print(found, folder)


def _print(found: Sweep, folder: Path) -> None:
    """A table with a row for each width, and the choice."""
    levels, widths = (sorted({getattr(cell, key) for cell in found.cells}) for key in ("wl", "ww"))
    dice = {(cell.wl, cell.ww): cell.val_dice for cell in found.cells}
    click.echo("WW \\ WL " + "".join(f"{wl:>9g}" for wl in levels))
    for ww in widths:
        row = (dice[wl, ww] for wl in levels)
        click.echo(f"{ww:>7g} " + "".join("        -" if value is None else f"{value:>9.4f}" for value in row))
    if found.missing:
        click.echo(f"{len(found.missing)} of {len(found.cells)} cells are not trained yet: {', '.join(found.missing)}")
    elif found.chosen is not None:
        tested = "no test cases" if found.test_dice is None else f"test Dice {found.test_dice:.4f}"
        cases = f" ({', '.join(found.test_cases)})" if found.test_cases else ""
        click.echo(f"chosen: WL {found.chosen.wl:g} WW {found.chosen.ww:g}, {tested}{cases}; {folder / 'heat_map.png'}")

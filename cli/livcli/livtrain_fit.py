"""`livtrain fit`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livcli.options import output_options, say, store_option

if TYPE_CHECKING:
    from livtrain.trainer import StepReport, Summary

_LINE_EVERY_S = 10.0


@click.command(
    epilog="Example: livtrain fit --stage liver --run runs/liver --time 2h",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@store_option
@click.option(
    "--stage",
    type=click.Choice(["liver", "tumor", "multiclass"]),
    help="What to learn: the liver, tumors near the liver, or both in one network.  [default: liver]",
)
@click.option(
    "--run",
    "run_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the run.  [default: runs/<stage>]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML with settings; a run's config.yaml repeats that run.",
)
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting, as augment.noise=0.1.")
@click.option("--preset", help="gpu, fast-cpu, h200, lits2017, ...; a wrong one lists them.  [default: by device]")
@click.option("--network", help="Name of a network; a wrong one lists them.  [default: resunet]")
@click.option("--loss", help="Name of a loss; a wrong one lists them.  [default: by preset]")
@click.option(
    "--windows",
    metavar="a,b|hu:40/220,60/140|learned:40/220",
    help="Input channels: stored ones by name, levels and widths in HU, or learned from there on.  "
    "[default: every stored channel]",
)
@click.option("--split", help="Name of a recorded split.  [default: default, made where there is none]")
@click.option(
    "--fold", metavar="K|all", help="Train fold K, or all, of the split (livprep split --folds) into RUN/fold-K."
)
@click.option("--seed", type=click.IntRange(min=0), help="Seed of weights, patches and augmentation.  [default: 0]")
@click.option("--deterministic", is_flag=True, default=None, help="Ask for deterministic algorithms on a GPU too.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps.  [default: by preset]")
@click.option("--time", "duration", metavar="2h", help="Stop after this time; without --steps it sets the length.")
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--resume", is_flag=True, help="Continue the run in --run, or start it if it is not there.")
@output_options
def fit(
    store: Path,
    run_dir: Path | None,
    config: Path | None,
    assignments: tuple[str, ...],
    preset: str | None,
    duration: str | None,
    fold: str | None,
    resume: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train one stage on patches streamed from the store.

    The defaults suit the store and the device, and each is said on stderr. The run folder holds config.yaml,
    metrics.jsonl, metrics.csv, TensorBoard events, loss.png, dice.png, last.pt, best.pt, previews and
    summary.json. USR1, USR2, TERM and INT save the step and end the run; --resume continues it.

    On several GPUs: torchrun --nproc-per-node 2 --no-python livtrain fit ... Each process takes --set batch patches of
    a step; gradients are averaged, the learning rate is not scaled, and the first process writes and speaks.
    """
    from livprep.store import open_store
    from livtrain import trainer
    from livtrain.config import parse_duration_s

    opened = open_store(store)
    options["time_s"] = parse_duration_s(duration) if duration else None
    settings, folder = trainer.settings_for_run(run_dir, resume, preset, config, assignments, options, fold)
    silent = quiet or os.environ.get("RANK", "0") != "0"  # of the processes of torchrun, the first speaks
    with _progress(silent) as on_step:
        told: Any = {"resume": resume, "say": lambda line: say(silent, line), "on_step": on_step}
        if fold is None:
            summaries = [trainer.fit(opened, settings, folder, **told)]
        else:
            numbers = trainer.fold_numbers(opened, settings.split, fold)
            summaries = trainer.fit_folds(opened, settings, folder, numbers, **told)
    for summary in summaries if os.environ.get("RANK", "0") == "0" else []:
        click.echo(json.dumps(asdict(summary)) if as_json else _line(summary))


def _line(summary: Summary) -> str:
    """One line for a person."""
    dice = "none" if summary.best_val_dice is None else f"{summary.best_val_dice:.4f} at step {summary.best_step}"
    return f"{summary.run}: {summary.steps} steps in {summary.seconds:.0f} s, best validation Dice {dice}"


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[StepReport], None]]:
    """A bar on stderr, or a plain line every ten seconds where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield _plain_lines(quiet)
        return
    columns = ("{task.description}", BarColumn(), "{task.percentage:>3.0f}%", TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as bar:
        task = bar.add_task("fit", total=1.0, note="")
        yield lambda report: bar.update(task, completed=report.fraction, note=_note(report))


def _plain_lines(quiet: bool) -> Callable[[StepReport], None]:
    last = time.monotonic()

    def on_step(report: StepReport) -> None:
        nonlocal last
        if time.monotonic() - last >= _LINE_EVERY_S:
            last = time.monotonic()
            say(quiet, _note(report))

    return on_step


def _note(report: StepReport) -> str:
    of = f" of {report.steps}" if report.steps else ""
    minutes, seconds = divmod(round(report.seconds_left), 60)
    dice = "" if report.val_dice is None else f"validation Dice {report.val_dice:.3f}, "
    return (
        f"step {report.step}{of}, loss {report.loss:.4f}, {dice}{report.patches_per_s:.1f} patches/s, "
        f"waiting {report.wait_fraction:.0%}, {report.memory_bytes / 1e9:.1f} GB, {minutes}:{seconds:02d} left"
    )

"""`livprep window`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from livcli.options import Part, output_options, say, store_option

if TYPE_CHECKING:
    from livprep.catalog.shared import WindowFacts
    from livprep.pipeline import ClusterName
    from livprep.store import Store
    from livprep.suggestion import Verdict
    from livprep.windows import Window


@click.command(
    epilog="Examples: \n\n\b\nlivprep window --wl 40 --ww 220 --wl 60 --ww 140\n"
    "livprep window --preset liver --preset lesion\nlivprep window --blend\nlivprep window --suggest -o windows.png",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@store_option
@click.option("--wl", multiple=True, type=float, help="Window level (center) in HU; pairs with --ww.")
@click.option("--ww", multiple=True, type=float, help="Window width in HU.")
@click.option("--preset", multiple=True, help="A window of the catalogue, by name (see `livprep catalog`).")
@click.option("--name", multiple=True, help="Channel name for each --wl/--ww pair.")
@click.option(
    "--blend",
    is_flag=False,
    flag_value="both",
    type=click.Choice(["stacked", "mean", "both"]),
    help="stacked: the given windows (none: -45...105 and -40...160 HU) and an equalized channel. mean: one channel, "
    "the mean of three given windows (none: the default bank) weighted 2:3:1. Alone: both.",
)
@click.option(
    "--equalize",
    is_flag=False,
    flag_value="volume",
    type=click.Choice(["volume", "slice"]),
    help="A channel with equalized histogram, of the volume or, where asked for, of each slice.",
)
@click.option(
    "--clahe", is_flag=True, help="Each given window (none: `liver`) as a channel equalized by CLAHE instead."
)
@click.option("--adaptive", is_flag=True, help="A window found in each scan's own soft tissue, never from labels.")
@click.option("--remove", multiple=True, metavar="NAME", help="Remove a channel.")
@click.option("--suggest", is_flag=True, help="Add nothing: print for windows and patients what they keep and part.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="PNG of --suggest: heat maps over WL x WW."
)
@click.option("--cases", "pattern", default="*", show_default=True, help="Only case ids that fit this pattern.")
@click.option(
    "--catalog",
    "catalog_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Catalogue to use instead of the built-in one.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes.")
@click.option("--scheduler", help="Address of a running Dask scheduler.")
@click.option("--cluster", type=click.Choice(["slurm"]), help="Start the workers as jobs of this batch system.")
@click.option(
    "--part",
    type=Part(),
    default="1/1",
    show_default=True,
    help="The I-th of every N cases by sorted id; auto/N in a job array.",
)
@output_options
def window(
    store: Path,
    wl: tuple[float, ...],
    ww: tuple[float, ...],
    preset: tuple[str, ...],
    name: tuple[str, ...],
    blend: str | None,
    equalize: str | None,
    clahe: bool,
    adaptive: bool,
    remove: tuple[str, ...],
    suggest: bool,
    output: Path | None,
    pattern: str,
    catalog_path: Path | None,
    workers: int | None,
    scheduler: str | None,
    cluster: ClusterName | None,
    part: tuple[int, int],
    as_json: bool,
    quiet: bool,
) -> int:
    """Add windowed channels (uint8) to every case; without options the catalogue's default bank."""
    from livcli.progress import report
    from livprep.catalog import load_catalog
    from livprep.cohort import plan_windows, remove_windows, run_windows
    from livprep.store import open_store

    opened = open_store(store)
    facts = load_catalog(catalog_path).windows
    others = (blend, equalize, clahe, adaptive)
    if remove:
        if wl or ww or preset or name or any(others) or suggest:
            raise click.UsageError("--remove stands alone")
        removed = [receipt for each in remove for receipt in remove_windows(opened, each, pattern)]
        if all(receipt.status == "unchanged" for receipt in removed):
            there = ", ".join(sorted({each.name for case in opened.values() for each in case.windows})) or "none"
            say(quiet, f"no case has a channel {', '.join(remove)}; there are {there}")
        return report(removed, len(removed), "remove", as_json=as_json, quiet=quiet)
    given = given_windows(wl, ww, name, preset, facts)
    if suggest:
        if any(others):
            raise click.UsageError("--suggest looks at windows: give --wl with --ww, --preset or nothing")
        windows = given or list(facts.presets.values())
        return _suggest(opened, windows, pattern, output, as_json=as_json, quiet=quiet)
    if output is not None:
        raise click.UsageError("-o is of --suggest")
    windows = choose_channels(given, facts, blend=blend, equalize=equalize, clahe=clahe, adaptive=adaptive)
    say(quiet, "windows: " + ", ".join(map(str, windows)))
    jobs = plan_windows(opened, windows, pattern, part)
    run = run_windows(opened, jobs, workers, scheduler, cluster)
    return report(run, len(jobs), "window", as_json=as_json, quiet=quiet)


def given_windows(
    wl: tuple[float, ...],
    ww: tuple[float, ...],
    names: tuple[str, ...],
    presets: tuple[str, ...],
    facts: WindowFacts,
) -> list[Window]:
    """Linear windows of the options in the order given."""
    from livprep.windows import Window

    if len(wl) != len(ww):
        raise click.UsageError(f"--wl was given {len(wl)} times and --ww {len(ww)} times; they pair")
    if names and len(names) != len(wl):
        raise click.UsageError(f"--name was given {len(names)} times for {len(wl)} windows")
    windows = [Window(c, w, n) for c, w, n in zip(wl, ww, names or ("",) * len(wl), strict=True)]
    for each in presets:
        if each not in facts.presets:
            raise click.UsageError(f"no preset {each!r}; there are {', '.join(sorted(facts.presets))}")
        windows.append(facts.presets[each])
    return windows


def choose_channels(
    given: list[Window],
    facts: WindowFacts,
    *,
    blend: str | None = None,
    equalize: str | None = None,
    clahe: bool = False,
    adaptive: bool = False,
) -> list[Window]:
    """Channels of the options, in one order; nothing asked for means the default bank."""
    from livprep.channels import HIDAJAT_WEIGHTS, Adaptive, Clahe, Equalized, WeightedMean

    stacked = blend in ("stacked", "both")
    channels: list[Window] = []
    if clahe:
        channels += [Clahe.after(window) for window in given or [facts.presets["liver"]]]
    elif blend != "mean":
        channels += given or ([facts.presets[name] for name in BLENDED] if stacked else [])
    if equalize or stacked:
        channels.append(Equalized.make("slice" if equalize == "slice" else "volume"))
    if blend in ("mean", "both"):
        mixed = tuple(given or facts.default_bank())
        if len(mixed) != len(HIDAJAT_WEIGHTS):
            raise click.UsageError(f"--blend {blend}: the mean 2:3:1 is of three windows, {len(mixed)} were given")
        channels.append(WeightedMean.of(mixed, HIDAJAT_WEIGHTS))
    if adaptive:
        channels.append(Adaptive.make())
    return channels or list(facts.default_bank())


BLENDED = ("liver-narrow", "liver-custom")
"""Presets that Multiclass-U-Net stacks with an equalized channel."""


def _suggest(
    store: Store,
    windows: list[Window],
    pattern: str,
    output: Path | None,
    *,
    as_json: bool,
    quiet: bool,
) -> int:
    """Print what windows keep and part; draw the heat maps where asked for."""
    from livprep.suggestion import judge, search, tally_cohort

    tallies = tally_cohort(store, pattern)
    verdicts = judge(tallies, windows)
    if as_json:
        for verdict in verdicts:
            for row in verdict.rows:
                click.echo(json.dumps({"case": verdict.case, "patient": verdict.patient, **row.as_json()}))
    else:
        _print_verdicts(verdicts)
    if output is not None:
        from livprep.figures import draw_window_search

        output.write_bytes(draw_window_search(search(tallies)))
        say(quiet, f"heat maps: {output}")
    return 0


def _print_verdicts(verdicts: list[Verdict]) -> None:
    """A line for each case and window, and the worst and the mean of all cases for each window."""
    click.echo(f"{'case':<14} {'window':<16} {'HU':<14} {'liver':>6} {'tumor':>6} {'AUC':>6}")
    for verdict in verdicts:
        for row in verdict.rows:
            _print_row(verdict.case, row.window, (row.liver_kept, row.tumor_kept, row.auc))
    for k, first in enumerate(verdicts[0].rows):
        rows = [verdict.rows[k] for verdict in verdicts]
        columns = [[row.liver_kept for row in rows], [row.tumor_kept for row in rows], [row.auc for row in rows]]
        known = [[value for value in column if value == value] for column in columns]
        _print_row("mean", first.window, [sum(column) / len(column) if column else None for column in known])
        _print_row("lowest", first.window, [min(column, default=None) for column in known])


def _print_row(case: str, window: Window, numbers: Iterable[float | None]) -> None:
    bounds = f"{window.low_hu:g}…{window.high_hu:g}"
    cells = ["     –" if value is None or value != value else f"{value:6.3f}" for value in numbers]
    click.echo(f"{case:<14} {window.name:<16} {bounds:<14} {' '.join(cells)}")

"""`livprep window`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from livcli.options import output_options, say, store_option

if TYPE_CHECKING:
    from livprep.windows import Window


@click.command(
    epilog="Example: livprep window --wl 40 --ww 220",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@store_option
@click.option("--wl", multiple=True, type=float, help="Window level (center) in HU; pairs with --ww.")
@click.option("--ww", multiple=True, type=float, help="Window width in HU.")
@click.option("--preset", multiple=True, help="A window of the catalogue, by name (see `livprep catalog`).")
@click.option("--name", multiple=True, help="Channel name for each --wl/--ww pair.")
@click.option("--remove", multiple=True, metavar="NAME", help="Remove a channel.")
@click.option("--cases", "pattern", default="*", show_default=True, help="Only case ids that fit this pattern.")
@click.option(
    "--catalog",
    "catalog_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Catalogue to use instead of the built-in one.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes.")
@click.option("--scheduler", help="Address of a running Dask scheduler.")
@output_options
def window(
    store: Path,
    wl: tuple[float, ...],
    ww: tuple[float, ...],
    preset: tuple[str, ...],
    name: tuple[str, ...],
    remove: tuple[str, ...],
    pattern: str,
    catalog_path: Path | None,
    workers: int | None,
    scheduler: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Add windowed channels (uint8) to every case; without options the catalogue's default bank."""
    from itertools import chain

    from livcli.progress import report
    from livprep.cohort import plan_windows, remove_windows, run_windows
    from livprep.store import open_store

    opened = open_store(store)
    if remove:
        if wl or ww or preset or name:
            raise click.UsageError("--remove stands alone")
        removed = chain.from_iterable(remove_windows(opened, each, pattern) for each in remove)
        return report(removed, len(opened) * len(remove), "remove", as_json=as_json, quiet=quiet)
    windows = choose_windows(wl, ww, name, preset, catalog_path)
    say(quiet, "windows: " + ", ".join(f"{w.name} [{w.low_hu:g}, {w.high_hu:g}] HU" for w in windows))
    jobs = plan_windows(opened, windows, pattern)
    return report(run_windows(opened, jobs, workers, scheduler), len(jobs), "window", as_json=as_json, quiet=quiet)


def choose_windows(
    wl: tuple[float, ...],
    ww: tuple[float, ...],
    names: tuple[str, ...],
    presets: tuple[str, ...],
    catalog_path: Path | None,
) -> list[Window]:
    """Windows of the options in the order given; none given means the default bank."""
    from livprep.catalog import load_catalog
    from livprep.windows import Window

    if len(wl) != len(ww):
        raise click.UsageError(f"--wl was given {len(wl)} times and --ww {len(ww)} times; they pair")
    if names and len(names) != len(wl):
        raise click.UsageError(f"--name was given {len(names)} times for {len(wl)} windows")
    windows = [Window(c, w, n) for c, w, n in zip(wl, ww, names or ("",) * len(wl), strict=True)]
    facts = load_catalog(catalog_path).windows
    for each in presets:
        if each not in facts.presets:
            raise click.UsageError(f"no preset {each!r}; there are {', '.join(sorted(facts.presets))}")
        windows.append(facts.presets[each])
    return windows or list(facts.default_bank())

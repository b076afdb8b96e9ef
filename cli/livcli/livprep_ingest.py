"""`livprep ingest`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from livcli.options import Part, output_options, say, store_option


class Spacing(click.ParamType[Any]):
    """`native`, or `Z,Y,X` in mm where each may be `native`."""

    name = "native|Z,Y,X"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse into a triple of floats or None."""
        if isinstance(value, tuple):
            return value
        parts = [value] * 3 if value == "native" else str(value).split(",")
        try:
            triple = tuple(None if part.strip() == "native" else float(part) for part in parts)
        except ValueError:
            triple = ()
        if len(triple) != 3:
            self.fail(f"{value!r} is neither native nor three spacings Z,Y,X in mm", param, ctx)
        return triple


@click.command(
    epilog="Example: livprep ingest ircadb/ lits/ --spacing 3,3,3",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("sources", nargs=-1, required=True, metavar="SRC...", type=click.Path(path_type=Path))
@store_option
@click.option(
    "--dataset",
    type=click.Choice(["auto", "ircadb", "lits", "own"]),
    default="auto",
    show_default=True,
    help="What lies under SRC.",
)
@click.option("--spacing", type=Spacing(), default="native", show_default=True, help="Wanted spacing in mm.")
@click.option(
    "--interpolation",
    type=click.Choice(["cubic", "linear", "bspline"]),
    default="cubic",
    show_default=True,
    help="For HU; labels are always linear on one-hot.",
)
@click.option(
    "--profile",
    type=click.Choice(["fast", "balanced", "small"]),
    default="balanced",
    show_default=True,
    help="Compression of the volumes.",
)
@click.option("--replace", is_flag=True, help="Rebuild cases that are published already.")
@click.option(
    "--catalog",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Catalogue to use instead of the built-in one; lists scans of your own under `own`.",
)
@click.option(
    "--private-map",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write which case came from which files: JSON lines, for its owner alone, never inside the store.",
)
@click.option("--cases", "pattern", default="*", show_default=True, help="Only case ids that fit this pattern.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Worker processes; by default as many as fit cores and memory.",
)
@click.option("--scheduler", help="Address of a running Dask scheduler; for tls:// with Dask's own credentials.")
@click.option(
    "--cluster",
    type=click.Choice(["slurm"]),
    help="Start the workers as jobs of this batch system (its queue and account: Dask's jobqueue settings).",
)
@click.option("--dashboard", is_flag=True, help="Say where Dask's dashboard listens, on this machine alone.")
@click.option(
    "--part",
    type=Part(),
    default="1/1",
    show_default=True,
    help="The I-th of every N cases by sorted id; auto/N in a job array.",
)
@click.option("--dry-run", is_flag=True, help="Only print the plan with its memory and disk estimate.")
@click.option(
    "--on-reject",
    type=click.Choice(["skip", "stop"]),
    default="skip",
    show_default=True,
    help="What to do after a rejected case.",
)
@output_options
def ingest(
    sources: tuple[Path, ...],
    store: Path,
    spacing: tuple[float | None, float | None, float | None],
    interpolation: Any,
    dry_run: bool,
    on_reject: str,
    dashboard: bool,
    as_json: bool,
    quiet: bool,
    **choices: Any,
) -> int:
    """Read folders, zips or single files of 3DIRCADb or LiTS, or own scans, and publish each case in the store.

    Cases that are published and unchanged are skipped.
    """
    from livcli.progress import report
    from livprep.cohort import IngestRequest, plan_ingest, run_ingest
    from livprep.prepare import Preparation

    request = IngestRequest(sources, store, preparation=Preparation(spacing, interpolation), **choices)
    planned = plan_ingest(request)
    if planned.catalog_path is not None:
        say(quiet, f"catalogue: {planned.catalog_path}")
    for entry in planned.found.ignored:
        say(quiet, f"{entry.case_id}: {entry.detail}")
    if dry_run:
        _print_plan(planned, as_json)
        return 3 if planned.found.rejected else 0
    say(
        quiet,
        f"{planned.total} case{'' if planned.total == 1 else 's'} found, {planned.workers} worker(s), store {store}",
    )
    receipts = run_ingest(planned, (lambda line: click.echo(line, err=True)) if dashboard else None)
    if on_reject == "stop":
        receipts = _until_rejected(receipts)
    return report(receipts, planned.total, "ingest", as_json=as_json, quiet=quiet)


def _until_rejected(receipts: Any) -> Any:
    for receipt in receipts:
        yield receipt
        if receipt.status == "rejected":
            receipts.close()
            return


def _print_plan(planned: Any, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    for need in planned.plan.needs:
        if as_json:
            click.echo(json.dumps(asdict(need)))
        else:
            click.echo(
                f"{need.case_id:<14} {need.voxel_bytes / 1e6:8.1f} MB of HU, "
                f"{need.peak_bytes / 1e6:8.1f} MB memory, {need.disk_bytes / 1e6:8.1f} MB disk"
                + ("" if need.shape_zyx is None else f", {'×'.join(map(str, need.shape_zyx))} voxels (zyx)")
            )
    for entry in planned.found.rejected:
        record = {"case": entry.case_id, "status": "rejected", "code": entry.code, "detail": entry.detail}
        click.echo(json.dumps(record) if as_json else f"{entry.case_id:<14} rejected   {entry.code}: {entry.detail}")
    if not as_json:
        click.echo(
            f"{len(planned.plan.needs)} cases, {planned.workers} worker(s) of up to "
            f"{planned.plan.peak_bytes / 1e6:.0f} MB, {planned.plan.disk_bytes / 1e6:.0f} MB disk"
        )

"""`livtrain bench`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from livcli.options import output_options, say, store_option

if TYPE_CHECKING:
    from livtrain.loader.measuring import Throughput


class _Numbers(click.ParamType[tuple[int, ...]]):
    """Positive whole numbers with commas between them."""

    name = "N,N,..."

    def __init__(self, count: int | None = None) -> None:
        self._count = count

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or min(numbers) < 1 or self._count not in (None, len(numbers)):
            self.fail(f"{value!r}: expected {self._count or 'one or more'} positive numbers, as in the default")
        return numbers


@click.group(epilog="Example: livtrain bench loader", context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure throughput on this machine and store."""


@bench.command(
    epilog="Example: livtrain bench loader --tier disk --tier ram --threads 1,2,4 --step-ms 50",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("path", metavar="[STORE]", required=False, type=click.Path(path_type=Path))
@store_option
@click.option("--patch", type=_Numbers(3), default="128,128,128", show_default=True, help="Voxels along z, y, x.")
@click.option("--batch", type=click.IntRange(min=1), default=2, show_default=True, help="Patches in a batch.")
@click.option(
    "--tier",
    "tiers",
    multiple=True,
    type=click.Choice(["auto", "device", "ram", "disk"]),
    help="Where voxels lie between patches; several are measured one after the other.  [default: auto]",
)
@click.option("--threads", type=_Numbers(), default="1,2", show_default=True, help="Reading threads, one or more.")
@click.option(
    "--deliver",
    type=click.Choice(["channels", "packed", "nnunet"]),
    default="channels",
    show_default=True,
    help="Windowed channels, packed voxels as stored, or nnU-Net's types.",
)
@click.option(
    "--windows",
    default="stored",
    show_default=True,
    metavar="a,b|hu:40/220,60/140",
    help="Channels, with --deliver channels.",
)
@click.option("--stage", type=click.Choice(["liver", "tumor", "multiclass"]), default="liver", show_default=True,
              help="Whose patches are drawn.")  # fmt: skip
@click.option("--patches-per-read", type=click.IntRange(min=1), default=1, show_default=True, help="Neighbors a read.")
@click.option("--check", type=click.Choice(["always", "first", "never"]), default="first", show_default=True,
              help="When the crc32c of a chunk is verified.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0.01), default=5.0, show_default=True, help="Of each measurement.")
@click.option(
    "--step-ms", type=click.FloatRange(min=0.01), help="Time of a training step, for the fraction of waiting."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@output_options
def loader(
    path: Path | None,
    store: Path,
    patch: tuple[int, int, int],
    batch: int,
    tiers: tuple[str, ...],
    threads: tuple[int, ...],
    deliver: str,
    windows: str,
    stage: str,
    patches_per_read: int,
    check: str,
    seconds: float,
    step_ms: float | None,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Stream random patches of labelled cases and print patches/s, bytes/s, processor time and waiting."""
    from livprep.errors import UsageError
    from livprep.store import open_store
    from livprep.windows import WindowBank
    from livtrain.config import parse_windows
    from livtrain.loader.measuring import measure
    from livtrain.trainer.plan import choose_device

    opened = open_store(path or store, check=check)  # type: ignore[arg-type]
    cases = [case_id for case_id in opened if opened[case_id].has_labels]
    if not cases:
        raise UsageError("STORE_EMPTY", f"{path or store}: holds no labelled cases; run `livprep ingest` first")
    bank = WindowBank(())
    if deliver == "channels":
        bank = WindowBank(tuple(setting.window() for setting in parse_windows(windows, opened[cases[0]].windows)))
    if not as_json:
        click.echo(_HEAD)
    for tier in tiers or ("auto",):
        for count in threads:
            found = measure(
                opened,
                patch,
                batch,
                seconds=seconds,
                step_ms=step_ms,
                cases=cases,
                windows=bank,
                stage=stage,
                workers=count,
                device=choose_device(device),
                deliver=deliver,
                tier=tier,
                patches_per_read=patches_per_read,
            )
            say(quiet, f"tier {found.tier}: {found.why}")
            click.echo(json.dumps(asdict(found)) if as_json else _row(found))


_HEAD = "tier    threads  patches/s    MB/s  CPU ms/patch  CPU share  start s  waiting"


def _row(found: Throughput) -> str:
    waiting = "-" if found.wait_fraction is None else f"{found.wait_fraction:.1%}"
    return (
        f"{found.tier:<7} {found.threads:>7} {found.patches_per_s:>10.1f} {found.bytes_per_s / 1e6:>7.0f} "
        f"{found.cpu_ms_per_patch:>13.2f} {found.cpu_share:>10.0%} {found.start_s:>8.2f} {waiting:>8}"
    )


@bench.command(
    epilog="Example: livtrain bench step --preset gpu --set patch_zyx=[128,128,128] --steps 50",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@store_option
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Measured, after two others.")
@click.option("--stage", type=click.Choice(["liver", "tumor", "multiclass"]), default="liver", show_default=True,
              help="Which stage is trained.")  # fmt: skip
@click.option("--preset", help="As fit's; by default the device's.")
@click.option("--windows", help="As fit's.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="As fit's; repeat it for several.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@output_options
def step(
    store: Path,
    steps: int,
    stage: str,
    preset: str | None,
    windows: str | None,
    assignments: tuple[str, ...],
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train some steps on the store's patches, keep nothing, and print steps/s, patches/s, waiting and memory."""
    from livprep.store import open_store
    from livtrain.trainer.measuring import measure_steps
    from livtrain.trainer.plan import settings_for_run

    options = {"stage": stage, "windows": windows, "device": device}
    settings, _ = settings_for_run(None, False, preset, None, assignments, options)
    found = measure_steps(open_store(store), settings, steps, lambda text: say(quiet, text))
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    patch = "x".join(map(str, found.patch_zyx))
    click.echo(
        f"{found.network} ({found.parameters:,} parameters), {found.batch} x {patch} on {found.device}: "
        f"{found.step_ms:.1f} ms a step, {found.patches_per_s:.2f} patches/s, {found.data_wait_fraction:.1%} waiting, "
        f"{max(found.peak_memory_bytes, found.device_memory_bytes) / 2**30:.2f} GiB"
    )


@bench.command(
    epilog="Example: livtrain bench predict lits-003 --liver runs/liver --tumor runs/tumor",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("sources", nargs=-1, metavar="SRC...")
@store_option
@click.option("--liver", type=click.Path(path_type=Path), multiple=True, help="As predict's.")
@click.option("--tumor", type=click.Path(path_type=Path), multiple=True, help="As predict's.")
@click.option("--preset", help="Without --liver: of untrained networks for both stages; by default the device's.")
@click.option("--tta", is_flag=True, help="As predict's.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@output_options
def predict(
    sources: tuple[str, ...],
    store: Path,
    liver: tuple[Path, ...],
    tumor: tuple[Path, ...],
    preset: str | None,
    tta: bool,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Segment cases of the store (without SRC all) or scans in files, and print seconds, the networks' share, memory.

    Nothing is written.
    """
    from livprep.catalog import load_catalog
    from livprep.prepare import Preparation
    from livprep.store import is_store, open_store
    from livtrain.checkpoint import run_folders
    from livtrain.config import resolve
    from livtrain.inference import PredictOptions, Predictor, find_scans, load_stage
    from livtrain.inference.measuring import measure_predictions, untrained
    from livtrain.trainer.plan import choose_device, default_preset

    chosen = choose_device(device)
    first = [load_stage(run, ("liver", "multiclass")) for path in liver for run in run_folders(path)]
    second = [load_stage(run, ("tumor",)) for path in tumor for run in run_folders(path)]
    if not first:
        settings = resolve(preset=preset, fallback_preset=default_preset(device))
        preparation = open_store(store).preparation if is_store(store) else Preparation()
        first, second = [untrained("liver", settings, preparation)], [untrained("tumor", settings, preparation)]
        say(quiet, f"untrained networks of the preset {settings.preset}")
    scans, _ = find_scans(sources, store, load_catalog())
    predictor = Predictor(first, second, PredictOptions(tta=tta), chosen)
    for found in measure_predictions(scans, predictor, chosen):
        click.echo(
            json.dumps(asdict(found))
            if as_json
            else f"{found.case:<14} {found.seconds:8.1f} s ({found.network_share:.0%} network)  "
            f"{found.voxels_per_s / 1e6:.2f} Mvoxel/s  peak {found.peak_memory_bytes / 2**30:.2f} GiB"
        )

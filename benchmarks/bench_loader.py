"""Patches per second of our loader and of others on the same synthetic cases, in interleaved rounds.

    python -m benchmarks.bench_loader --scratch DIR [--rounds 5] [--markdown benchmarks/results/loader.md]

Every contestant has its own process and its own form of the same cases (`benchmarks.peers`, the extra `bench`). In a
round each one opens its loader, is warmed up and measured for some seconds, one after the other; a ratio is that to
the better of nnU-Net's two settings in the same round. Batches of 2, a third of the patches centered on foreground,
no augmentation. Cold rows: files are dropped from the page cache before each measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import loader_report, ours
from benchmarks.contest import Entrant, Measured, Task, evict, held, resident
from benchmarks.peers import PEERS, contestant, patch_name
from benchmarks.volumes import FULL_ZYX, Shape, build_resampled, build_store, read_volumes, shape_of, write_cases

PATCHES: tuple[Shape, ...] = ((128, 128, 128), (96, 160, 160), (48, 256, 256))
SLOW = ("monai", "torchio")
"""Peers that read whole volumes: fewer rounds, the first patch only."""
RESAMPLED_MM = 1.0
PROFILES = ("balanced", "fast", "small")
Key = tuple[str, str, str]
"""Contestant, setting, patch."""


@dataclass
class Results:
    """What was measured: one list a key, its place in it is the round."""

    warm: dict[Key, dict[int, Measured]] = field(default_factory=lambda: defaultdict(dict))
    cold: dict[Key, dict[int, Measured]] = field(default_factory=lambda: defaultdict(dict))
    touched: dict[Key, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    """Compressed bytes of the chunks that the patches of a cold round lie in."""
    failed: dict[Key, str] = field(default_factory=dict)


def parse() -> argparse.Namespace:
    """Command line; the defaults are the full measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--size", type=int, default=FULL_ZYX[1], help="pixels a side; patches shrink with it")
    parser.add_argument("--patches", type=int, default=len(PATCHES), help="how many of the patch shapes")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    parser.add_argument("--warm", type=float, default=2.0, metavar="SECONDS", help="before each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=3, help="of MONAI and TorchIO")
    parser.add_argument("--cold-rounds", type=int, default=3)
    parser.add_argument("--cold-patches", type=int, default=24)
    parser.add_argument("--resampled", type=int, default=2, help="cases whose sizes are compared at 1 mm in-plane too")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"some of {','.join(PEERS)}, or none")
    parser.add_argument("--scratch", type=Path, help="keeps cases and the loaders' own forms for the next run")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here too")
    return parser.parse_args()


def main() -> None:
    """Prepare, measure, print."""
    options = parse()
    names = ["ours", *(name for name in options.peers.split(",") if name != "none")]
    share = options.size / FULL_ZYX[1]
    patches = [patch if share == 1 else shrunk(patch, share) for patch in PATCHES[: options.patches]]
    with contextlib.ExitStack() as stack:
        scratch = options.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(scratch, options, names, patches)
        results = Results()
        before = os.getloadavg()
        with contextlib.suppress(KeyboardInterrupt):  # what was measured until then is told
            for patch in patches:
                warm_rounds(scratch, options, names, patch, first=patch == patches[0], results=results)
            for patch in patches:
                cold_rounds(scratch, options, names, patch, results)
        about = loader_report.About(options, shape_of(options.size), names, before, os.getloadavg())
        text = loader_report.render(about, results, patches, scratch)
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


def shrunk(patch: Shape, share: float) -> Shape:
    """A patch in proportion to smaller volumes, 8 voxels at least."""
    z, y, x = (max(8, int(size * share)) for size in patch)
    return z, y, x


def folder_of(scratch: Path, name: str) -> Path:
    """Where a contestant's form of the cases lies; MONAI and TorchIO share one."""
    return scratch / ("nifti" if name in SLOW else name)


def prepare(scratch: Path, options: argparse.Namespace, names: list[str], patches: list[Shape]) -> None:
    """Write the cases, our stores and the others' forms, unless they are there."""
    say("cases")
    write_cases(scratch / "cases", options.cases, options.size)
    for profile in PROFILES:
        say(f"store, {profile}")
        build_store(scratch / "cases", scratch / f"{profile}.zarr", profile)
    for name in names:
        say(f"form of {name}")
        contestant(name).prepare(read_volumes(scratch / "balanced.zarr"), folder_of(scratch, name), patches)
    if "nnunet" in names and options.resampled:
        from benchmarks.peers import nnunet

        say("resampled")
        build_resampled(scratch / "cases", scratch / loader_report.RESAMPLED, options.resampled, RESAMPLED_MM)
        few = itertools.islice(read_volumes(scratch / "balanced.zarr"), options.resampled)
        nnunet.prepare(few, scratch / "nnunet-resampled", patches[:1], RESAMPLED_MM)


def warm_rounds(
    scratch: Path, options: argparse.Namespace, names: list[str], patch: Shape, *, first: bool, results: Results
) -> None:
    """Interleaved rounds of one patch; every other round runs backward, so that a drift of the machine evens out."""
    with contextlib.ExitStack() as stack:
        entrants = {
            name: stack.enter_context(Entrant(name, folder_of(scratch, name)))
            for name in names
            if first or name not in SLOW
        }
        rows = [(name, setting) for name in entrants for setting in contestant(name).SETTINGS]
        for number in range(options.rounds):
            for name, setting in rows if number % 2 == 0 else reversed(rows):
                if name in SLOW and number >= options.slow_rounds:
                    continue
                task = Task(setting, patch, number, options.warm, options.seconds)
                files = contestant(name).files(folder_of(scratch, name), setting, patch)
                with attempt(results, (name, setting, patch_name(patch))) as key, held(files):
                    results.warm[key][number] = told(key, entrants[name].measure(task))


def cold_rounds(scratch: Path, options: argparse.Namespace, names: list[str], patch: Shape, results: Results) -> None:
    """Some patches from evicted files; code is loaded and compiled before, files are mapped by nobody when they go."""
    rows = [
        (name, setting)
        for name in names
        if name in ("ours", "nnunet")
        for setting in contestant(name).SETTINGS
        if name != "ours" or setting.endswith(f"{ours.PACKED}, 2 threads")
    ]
    for number in range(options.cold_rounds):
        for name, setting in rows:
            folder = folder_of(scratch, name)
            files = contestant(name).files(folder, setting, patch)
            task = Task(setting, patch, number, patches=options.cold_patches)
            with attempt(results, (name, setting, patch_name(patch))) as key, Entrant(name, folder) as entrant:
                entrant.measure(Task(setting, patch, number, 0.0, 0.0))
                evict(files)
                if resident(files) > 0.01:
                    raise RuntimeError(f"{name}: {resident(files):.0%} of its files stay in memory")
                results.cold[key][number] = told(key, entrant.measure(task))
                if name == "ours":
                    touched = ours.touched_bytes(folder, setting, patch, number, options.cold_patches)
                    results.touched[key][number] = touched


@contextlib.contextmanager
def attempt(results: Results, key: Key) -> Iterator[Key]:
    """A contestant that fails loses its row, not the run."""
    try:
        yield key
    except RuntimeError as error:
        results.failed[key] = str(error).strip().splitlines()[-1]
        print(f"{' | '.join(key)}: {error}", file=sys.stderr, flush=True)


def told(key: Key, measured: Measured) -> Measured:
    """Progress on stderr."""
    disk = f", {measured.disk_bytes / 2**20:.0f} MB from disk" if measured.disk_bytes else ""
    say(f"{' | '.join(key)}: {measured.per_s:.1f}/s, {measured.cpu_ms:.2f} ms{disk}")
    return measured


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

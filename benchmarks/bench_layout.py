"""Size on disk and processor time of a random patch, by chunk shape, codec and reader.

    python -m benchmarks.bench_layout [STORE] [--case ID] [--rounds 5] [--patches 16] [--quick]

Without STORE it measures a phantom of 250 x 512 x 512 voxels with noise of a portal-venous scan. Every variant reads
the same patches, all in one round after another; figures are medians over rounds of the processor time of the whole
process, so that threads of zarr-python count. Cold readings drop the pages of the file before each patch; the
temporary folder (TMPDIR) has to lie on a disk for them. The tables go to benchmarks/results/layout.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from benchmarks.machine import describe
from livprep.store import open_store, pack
from livprep.store.arrays import VolumeArray
from livprep.windows import Window

PATCHES = ((128, 128, 128), (96, 160, 160), (48, 256, 256))
Region = tuple[slice, slice, slice]
Row = list[str]


@dataclass(frozen=True)
class Layout:
    """Inner chunk and codec of an array in one shard."""

    chunk_zyx: tuple[int, int, int]
    codec: str | None
    level: int = 0
    block_bytes: int = 0

    def __str__(self) -> str:
        chunk = "x".join(map(str, self.chunk_zyx))
        return f"{chunk} {'none' if self.codec is None else f'{self.codec} {self.level}, {self.block_bytes >> 10} KiB'}"

    def write(self, folder: Path, values: np.ndarray) -> float:
        """Write an array as the store does, and return the processor seconds."""
        shuffle = "shuffle" if values.itemsize > 1 else "noshuffle"
        blosc = BloscCodec(
            typesize=values.itemsize,
            cname=self.codec or "lz4",
            clevel=self.level,
            shuffle=shuffle,
            blocksize=self.block_bytes,
        )
        started = time.process_time()
        array = zarr.create_array(
            store=folder,
            shape=values.shape,
            dtype=values.dtype,
            chunks=self.chunk_zyx,
            shards=tuple(-(-n // c) * c for n, c in zip(values.shape, self.chunk_zyx, strict=True)),
            compressors=[Crc32cCodec()] if self.codec is None else [blosc, Crc32cCodec()],
            filters=None,
            fill_value=0,
        )
        array[...] = values
        return time.process_time() - started


CUBE = (64, 64, 64)
FAST, BALANCED, SMALL = Layout(CUBE, None), Layout(CUBE, "lz4hc", 5, 16384), Layout(CUBE, "zstd", 3, 65536)
LAYOUTS = (
    *(FAST, BALANCED, SMALL),
    *(Layout(CUBE, "lz4", 5, 16384), Layout(CUBE, "lz4hc", 9, 16384), Layout(CUBE, "lz4hc", 5, 65536)),
    *(Layout(CUBE, "zstd", 3, 16384), Layout((32, 32, 32), None), Layout((32, 32, 32), "lz4hc", 5, 16384)),
    *(Layout((32, 64, 64), "lz4hc", 5, 16384), Layout((32, 128, 128), None)),
    *(Layout((32, 128, 128), "lz4hc", 5, 16384), Layout((128, 128, 128), "lz4hc", 5, 16384)),
)


def regions(shape: tuple[int, ...], patch: tuple[int, ...], count: int, seed: int) -> list[Region]:
    """Random regions inside the volume."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(patch, shape)
    starts = rng.integers(0, np.subtract(shape, sizes) + 1, (count, 3))
    return [tuple(slice(int(a), int(a + n)) for a, n in zip(start, sizes, strict=True)) for start in starts]


def compare(readers: dict[str, Callable[[Region], Any]], wanted: list[Region], rounds: int) -> dict[str, np.ndarray]:
    """Processor ms a patch of each reader in each round; a round reads the same patches with every reader in turn."""
    found: dict[str, list[float]] = {name: [] for name in readers}
    for read in readers.values():
        read(wanted[0])
    for k in range(rounds):
        order = list(readers.items())
        for name, read in order[k % len(order) :] + order[: k % len(order)]:  # none always follows the same one
            started = time.process_time()
            for region in wanted:
                read(region)
            found[name].append((time.process_time() - started) / len(wanted) * 1000)
    return {name: np.array(values) for name, values in found.items()}


def into(array: VolumeArray, buffers: dict[tuple[int, ...], np.ndarray], check: str = "first") -> Callable:
    """A reader that fills a buffer which is used again."""

    def read(region: Region) -> None:
        shape = tuple(part.stop - part.start for part in region)
        array.read(region, buffers.setdefault(shape, np.empty(shape, array.dtype)), check)

    return read


def memmap_reader(path: Path, values: np.ndarray) -> Callable[[Region], None]:
    """The yardstick: a plain .npy, mapped, copied into a buffer."""
    np.save(path, values)
    mapped = np.load(path, mmap_mode="r")
    buffers: dict[tuple[int, ...], np.ndarray] = {}

    def read(region: Region) -> None:
        part = mapped[region]
        buffers.setdefault(part.shape, np.empty(part.shape, part.dtype))[...] = part

    return read


def table(title: str, head: Iterable[str], rows: Iterable[Row]) -> str:
    """A markdown table; the first column is text."""
    head = list(head)
    lines = [f"## {title}", "", "| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    text = "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
    print(text + "\n", flush=True)
    return text + "\n"


def size_mb(folder: Path) -> float:
    """Files of an array in MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def bench_layouts(root: Path, packed: np.ndarray, layouts: Iterable[Layout], rounds: int, count: int) -> str:
    """Chunk shape and codec of the packed array."""
    written = {layout: layout.write(root / f"l{k}", packed) for k, layout in enumerate(layouts)}
    arrays = {layout: VolumeArray(root / f"l{k}") for k, layout in enumerate(written)}
    yardstick = memmap_reader(root / "packed.npy", packed)
    cells: dict[Layout, Row] = {layout: [] for layout in written}
    for patch in PATCHES:
        buffers: dict[tuple[int, ...], np.ndarray] = {}
        readers = {"memmap": yardstick, **{str(k): into(array, buffers) for k, array in arrays.items()}}
        found = compare(readers, regions(packed.shape, patch, count, 1), rounds)
        for layout in written:
            ratio = np.median(found["memmap"] / found[str(layout)])
            cells[layout].append(f"{np.median(found[str(layout)]):.2f} ({ratio:.2f})")
    plain = {str(k): zarr.open_array(root / f"l{n}", mode="r").__getitem__ for n, k in enumerate(written)}
    slow = compare(plain, regions(packed.shape, PATCHES[0], max(2, count // 4), 1), max(1, rounds // 2))
    rows = [
        [str(layout), f"{size_mb(root / f'l{k}'):.1f}", f"{written[layout]:.2f}", *cells[layout],
         f"{np.median(slow[str(layout)]):.1f}"]
        for k, layout in enumerate(written)
    ]  # fmt: skip
    names = ["x".join(map(str, patch)) for patch in PATCHES]
    head = ["chunk, codec, block", "MB", "write CPU s", *(f"{name} ms (x memmap)" for name in names)]
    return table("Packed uint16 array", [*head, "zarr-python 128x128x128 ms"], rows)


def bench_arrays(root: Path, arrays: dict[str, np.ndarray], rounds: int, count: int) -> str:
    """Every array of a case, by profile."""
    rows = []
    for name, values in arrays.items():
        readers, sizes = {"memmap": memmap_reader(root / f"{name}.npy", values)}, []
        for profile, layout in {"fast": FAST, "balanced": BALANCED, "small": SMALL}.items():
            folder = root / f"{name}-{profile}"
            layout.write(folder, values)
            sizes.append(f"{size_mb(folder):.1f}")
            readers[profile] = into(VolumeArray(folder), {})
        found = compare(readers, regions(values.shape, PATCHES[0], count, 2), rounds)
        rows.append([f"{name} {values.dtype}", f"{values.nbytes / 1e6:.1f}", *sizes,
                     *(f"{np.median(found[key]):.2f}" for key in readers)])  # fmt: skip
    head = ["array, 64x64x64", "raw MB", "fast MB", "balanced MB", "small MB"]
    return table("Arrays of a case, ms for 128x128x128", [*head, "memmap ms", "fast", "balanced", "small"], rows)


def bench_checks(root: Path, packed: np.ndarray, rounds: int, count: int) -> str:
    """What verifying each chunk's crc32c costs."""
    rows = []
    for name, layout in {"fast": FAST, "balanced": BALANCED, "small": SMALL}.items():
        layout.write(root / f"crc-{name}", packed)
        readers = {check: into(VolumeArray(root / f"crc-{name}"), {}, check) for check in ("never", "first", "always")}
        wanted = regions(packed.shape, PATCHES[0], count, 3)
        touched = np.mean([VolumeArray(root / f"crc-{name}").stored_bytes(region) or 0 for region in wanted])
        for region in wanted:
            readers["first"](region)  # so that `first` has met every chunk, as it has after a short while of training
        found = {key: float(np.median(ms)) for key, ms in compare(readers, wanted, rounds).items()}
        cost = (found["always"] - found["never"]) * 1e6 / touched
        rows.append([name, f"{touched / 1e6:.1f}", *(f"{ms:.2f}" for ms in found.values()), f"{cost:.2f}"])
    return table(
        "crc32c of the chunks, ms for 128x128x128",
        ["profile", "MB touched", "never", "first, after it", "always", "always: ns a byte"],
        rows,
    )


def disk_bytes() -> int:
    """Bytes that this process has read from disk."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def drop_pages(path: Path) -> None:
    """Have the system forget the pages of a file, which nothing may map now."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def bench_cold(root: Path, packed: np.ndarray, count: int) -> str:
    """Bytes that come from disk when no page of the file is in memory; opening included."""
    rows = []
    for name, layout in {"fast": FAST, "balanced": BALANCED, "small": SMALL}.items():
        folder, npy = root / f"cold-{name}", root / "cold.npy"
        layout.write(folder, packed)
        np.save(npy, packed)
        whole = VolumeArray(folder)
        wanted = regions(packed.shape, PATCHES[0], count, 4)
        needed = sum(whole.stored_bytes(region) or 0 for region in wanted)
        del whole

        def announced(region: Region, folder: Path = folder) -> None:
            array = VolumeArray(folder)
            array.will_need(region)
            into(array, {})(region)

        readers: dict[str, tuple[Path, Callable[[Region], Any]]] = {
            "announced": (folder, announced),
            "not announced": (folder, lambda region, f=folder: into(VolumeArray(f), {})(region)),
            "zarr-python": (folder, lambda region, f=folder: zarr.open_array(f, mode="r")[region]),
            "memmap of .npy": (npy, lambda region, p=npy: np.array(np.load(p, mmap_mode="r")[region])),
        }
        for key, (path, read) in readers.items():
            used, wall = disk_bytes(), 0.0
            for region in wanted:
                for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
                    drop_pages(file)
                started = time.perf_counter()
                read(region)
                wall += time.perf_counter() - started
            used = disk_bytes() - used
            rows.append([f"{name}, {key}", f"{needed / count / 1e6:.2f}", f"{used / count / 1e6:.2f}",
                         f"{used / needed:.2f}", f"{wall / count * 1000:.1f}"])  # fmt: skip
    head = ["profile, reader", "MB of chunks touched", "MB from disk", "ratio", "wall ms"]
    return table("Cold, a 128x128x128 patch", head, rows)


def phantom(shape: tuple[int, int, int], noise_hu: float) -> tuple[np.ndarray, np.ndarray]:
    """HU and labels of a phantom with white noise on top of its own."""
    from livprep.phantom import make_phantom

    drawn = make_phantom(shape, (1.0, 0.78, 0.78), patient="lits-000", seed=0)
    noise = np.random.default_rng(0).normal(0, noise_hu, shape).astype(np.float32)
    inside = drawn.hu > -1000
    return np.where(inside, drawn.hu + np.rint(noise), drawn.hu).clip(-1024, 3071).astype(np.int16), drawn.labels()


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", nargs="?", type=Path)
    parser.add_argument("--case", default=None, help="case of the store; its first by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patches", type=int, default=16, help="patches a round")
    parser.add_argument("--noise-hu", type=float, default=12.0, help="noise added to the phantom's own")
    parser.add_argument("--quick", action="store_true", help="a small phantom and the profiles alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "layout.md")
    options = parser.parse_args()
    if options.store is None:
        shape = (100, 256, 256) if options.quick else (250, 512, 512)
        hu, labels = phantom(shape, options.noise_hu)
        subject = f"phantom, {options.noise_hu:g} HU of noise added"
    else:
        opened = open_store(options.store)
        case = opened.case(options.case or opened.case_ids[0])
        hu, labels = case.read_hu(), case.read_labels() if case.has_labels else None
        subject = "a stored case"
    packed = pack(hu, labels)
    window = Window(40, 400).apply(hu)
    parts = [
        "# Layout of the arrays\n",
        f"`python -m benchmarks.bench_layout`; {subject}, {'x'.join(map(str, hu.shape))} voxels; "
        f"medians of {options.rounds} interleaved rounds of {options.patches} patches; processor ms of the process, "
        f"in brackets the speed relative to np.memmap in the same rounds; load average {os.getloadavg()[0]:.0f}; "
        f"{describe('numpy', 'zarr', 'numba', 'blosc2', 'numcodecs')}.\n",
    ]
    print("\n".join(parts))
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        layouts = (FAST, BALANCED, SMALL) if options.quick else LAYOUTS
        parts.append(bench_layouts(root, packed, layouts, options.rounds, options.patches))
        arrays = {"hu": hu, "window": window, **({} if labels is None else {"labels": labels})}
        parts.append(bench_arrays(root, arrays, options.rounds, options.patches))
        parts.append(bench_checks(root, packed, options.rounds, options.patches))
        parts.append(bench_cold(root, packed, options.patches))
    options.out.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()

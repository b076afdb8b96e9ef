"""The phantom cohort: 12 synthetic patients through every public command, and nnU-Net v2 on the same data beside it.

    python -m benchmarks.bench_cohort --scratch DIR --minutes 15 [--nnunet /venv/with/nnunetv2/bin] \\
        [--markdown benchmarks/results/cohort.md]

ingest, window, split, fit --stage liver, fit --stage tumor, predict (the tumor network sees the predicted liver) and
evaluate, with the preset `fast-cpu`; `--minutes` is the time of both trainings together. nnU-Net gets the same
cases, on the grid of the store, and the same time for its one network of three classes. Steps that are done are
passed over when it is started again; a training that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import describe

DATASET = "Dataset501_Phantoms"
LIVER_SHARE = 0.3
WINDOWS = ("--wl", 40, "--ww", 220, "--wl", 110, "--ww", 220)
"""[-70, 150] and [0, 220] HU: the first alone saturates livers in the portal phase, and lesions that are brighter."""
WANTED = {"liver": 0.95, "tumor": 0.60}


@dataclass
class Diary:
    """What is done, in how many seconds; kept in a file, so that a benchmark can go on."""

    path: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, wanted: dict[str, Any]) -> Diary:
        """Read it, if it was written for the same options."""
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"options": wanted, "seconds": {}}
        if found["options"] != wanted:
            raise SystemExit(f"{path} was written with {found['options']}, not {wanted}; choose another --scratch")
        diary = cls(path, found["seconds"])
        diary._options = wanted
        return diary

    _options: dict[str, Any] = field(default_factory=dict, repr=False)

    def do(self, name: str, work: Callable[[], None]) -> None:
        """Do a step unless it is done."""
        if name in self.seconds:
            return
        print(f"bench_cohort: {name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        work()
        self.seconds[name] = round(time.monotonic() - began, 1)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"options": self._options, "seconds": self.seconds}), encoding="utf-8")
        temporary.replace(self.path)


def call(*arguments: object, cwd: Path, capture: bool = False, **environment: str) -> str:
    """Run a program to its end; its last lines become the error where it fails."""
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env=os.environ | {"LIVPREP_STORE": str(cwd / "liver.zarr")} | environment,
        stdout=subprocess.PIPE if capture else sys.stderr,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments[:6]))} ...: exit {done.returncode}")
    return done.stdout or ""


def livprep(*arguments: object, cwd: Path) -> None:
    """One `livprep` command line."""
    call(sys.executable, "-c", "from livcli.livprep_main import main; main()", *arguments, cwd=cwd)


def livtrain(*arguments: object, cwd: Path, capture: bool = False) -> str:
    """One `livtrain` command line."""
    return call(
        sys.executable, "-c", "from livcli.livtrain_main import main; main()", *arguments, cwd=cwd, capture=capture
    )


def ours(diary: Diary, folder: Path, options: argparse.Namespace) -> None:
    """Every public command from raw files to scores."""
    data = ("phantom", "data", "--dataset", "lits", "--cases", options.cases, "--size", options.size)

    def again(command: Sequence[object], made: str) -> None:
        shutil.rmtree(folder / made, ignore_errors=True)
        livprep(*command, cwd=folder)

    diary.do("phantom", lambda: again((*data, "--seed", options.seed), "data"))
    diary.do("ingest", lambda: again(("ingest", "data", "--spacing", options.spacing, "-q"), "liver.zarr"))
    diary.do("window", lambda: livprep("window", *WINDOWS, "-q", cwd=folder))
    diary.do("split", lambda: livprep("split", "--val", 0.17, "--test", 0.25, cwd=folder))
    total_s = 60 * options.minutes
    for stage, share in (("liver", LIVER_SHARE), ("tumor", 1 - LIVER_SHARE)):
        limit = f"{max(total_s * share, 1):.0f}s"
        fit = ("fit", "--stage", stage, "--preset", "fast-cpu", "--device", "cpu", "--time", limit, "--resume")
        sets = tuple(text for each in options.set for text in ("--set", each))
        diary.do(f"fit {stage}", lambda fit=fit, sets=sets: livtrain(*fit, *sets, cwd=folder) and None)
    both = ("--liver", "runs/liver", "--tumor", "runs/tumor", "--device", "cpu")
    diary.do("predict", lambda: livtrain("predict", "--cases", "test", *both, "-o", "ours", cwd=folder) and None)


def nnunet(diary: Diary, folder: Path, options: argparse.Namespace) -> None:
    """nnU-Net's commands on an export of the store."""
    roots = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for root in roots.values():
        Path(root).mkdir(exist_ok=True)
    raw = folder / "nnUNet_raw" / DATASET
    environment = roots | {
        "NNUNET_WALL_S": f"{60 * options.minutes:.0f}",
        "nnUNet_n_proc_DA": str(options.threads),
        "nnUNet_compile": "false",
        "PYTHONPATH": "",
    }

    def run(program: str, *arguments: object, **more: str) -> None:
        call(options.nnunet / program, *arguments, cwd=folder, **environment | more)

    def export() -> None:
        shutil.rmtree(raw, ignore_errors=True)
        livprep("export", "nnunet", raw, "-q", cwd=folder)

    def plan() -> None:
        shutil.rmtree(folder / "nnUNet_preprocessed" / DATASET, ignore_errors=True)
        workers = ("-np", 1, "-npfp", 1)
        run("nnUNetv2_plan_and_preprocess", "-d", 501, "-c", "3d_fullres", *workers)
        shutil.copy(raw / "splits_final.json", folder / "nnUNet_preprocessed" / DATASET)

    diary.do("nnU-Net export", export)
    diary.do("nnU-Net plan_and_preprocess", plan)
    # with one thread it augments in its own process; with more, half of them do, and the network takes all
    workers = str(options.threads // 2)
    fit = (Path(__file__).with_name("nnunet_wall_time.py"), 501, "3d_fullres", 0, "-device", "cpu")
    diary.do("nnU-Net train", lambda: run("python", *fit, nnUNet_n_proc_DA=workers))
    where = ("-i", raw / "imagesTs", "-o", folder / "theirs", "-d", 501, "-c", "3d_fullres", "-f", 0)
    plain = ("--disable_tta", "-npp", 1, "-nps", 1, "-device", "cpu")
    diary.do("nnU-Net predict", lambda: run("nnUNetv2_predict", *where, *plain))


def scores(folder: Path, predictions: str) -> dict[str, Any]:
    """What `livtrain evaluate` says: of ours against the store's labels on each scan's grid, of theirs on its own."""
    labels = () if predictions == "ours" else ("-r", f"nnUNet_raw/{DATASET}/labelsTs")
    text = livtrain("evaluate", "-p", predictions, *labels, "--json", "-q", cwd=folder, capture=True)
    found: dict[str, Any] = json.loads(text)
    return found


def report(diary: Diary, folder: Path, options: argparse.Namespace) -> str:
    """The page."""
    seconds = diary.seconds
    rows, parties = (
        [],
        {"livtrain, fast-cpu": "ours"} | ({"nnU-Net v2, 3d_fullres": "theirs"} if options.nnunet else {}),
    )
    for name, predictions in parties.items():
        found = scores(folder, predictions)
        cases = found["cases"]
        liver, tumor = (
            ", ".join("-" if case[key]["dice"] is None else f"{case[key]['dice']:.3f}" for case in cases)
            for key in ("liver", "tumor")
        )
        lits = found["lits"]
        rows.append(
            f"| {name} | {lits['liver_dice_per_case']:.3f} | {lits['lesion_dice_per_case']:.3f} | {liver} | {tumor} |"
        )
    own = sum(value for key, value in seconds.items() if not key.startswith(("nnU-Net", "phantom")))
    summaries = [json.loads((folder / "runs" / s / "summary.json").read_text()) for s in ("liver", "tumor")]
    networks = "; ".join(
        f"{s['stage']}: {s['parameters'] / 1e6:.2f} M parameters, {s['steps']} steps, validation Dice "
        f"{s['best_val_dice']:.3f}"
        if s["best_val_dice"] is not None
        else f"{s['stage']}: {s['steps']} steps"
        for s in summaries
    )
    steps = "\n".join(f"| {name} | {value:.0f} |" for name, value in seconds.items())
    packages = ["livprep", "torch", "numpy"]
    return f"""# {options.cases} phantoms, from raw files to scores

`python -m benchmarks.bench_cohort --minutes {options.minutes:g}`: {options.cases} synthetic LiTS patients of
{options.size} pixels in plane, {options.spacing} mm (zyx), divided by patient; scored on the test patients, who were
never seen: livtrain on the scans' own grids, nnU-Net on the store's, which it was trained on and which spares it the
way back. Both train {options.minutes:g} minutes on {options.threads} thread(s).
Wanted of livtrain: liver {WANTED["liver"]:.2f} and tumor {WANTED["tumor"]:.2f} per case.

| | liver, per case | tumor, per case | liver of each case | tumor of each case |
|---|---|---|---|---|
{chr(10).join(rows)}

livtrain from ingest to predictions: {own / 60:.1f} minutes. {networks}.

| step | seconds |
|---|---|
{steps}

{describe(*packages)}
"""


def main() -> None:
    """Run what is not done yet, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder of the benchmark; goes on where it was")
    parser.add_argument("--minutes", type=float, default=15.0, help="of training, liver and tumor together")
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--size", type=int, default=128, help="pixels in plane of a phantom")
    parser.add_argument("--spacing", default="3,3,3", help="mm, zyx")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch, for both parties")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of both of livtrain's stages")
    parser.add_argument("--nnunet", type=Path, help="bin folder of an environment with nnunetv2; without it ours alone")
    parser.add_argument("--markdown", type=Path, help="write the page there too")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    folder = options.scratch.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        name: getattr(options, name) for name in ("minutes", "cases", "size", "spacing", "seed", "threads", "set")
    }
    diary = Diary.of(folder / "diary.json", wanted)
    ours(diary, folder, options)
    if options.nnunet is not None:
        nnunet(diary, folder, options)
    text = report(diary, folder, options)
    if options.markdown is not None:
        options.markdown.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

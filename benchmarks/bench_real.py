"""Two real patients: trained on one, tried on the other, both ways; the liver's Dice on the scan's own grid.

    python -m benchmarks.bench_real --data DIR --scratch DIR [--minutes 5] [--spacing 3,3,3]

DIR holds 3DIRCADb 1 and 7 (or any two cases, with `--cases`). One patient cannot generalize; the figure shows that
nothing on the way is broken, not what the network can do. Pictures stay in the scratch folder: no voxel of a
patient goes into a report.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.bench_cohort import Diary, livprep, livtrain
from benchmarks.machine import describe


def tried(diary: Diary, folder: Path, train: str, test: str, options: argparse.Namespace) -> str:
    """One direction; a row of the table."""
    name = f"{train}-to-{test}"
    (folder / f"{name}.json").write_text(json.dumps({"train": [train], "test": [test]}), encoding="utf-8")
    diary.do(f"split {name}", lambda: livprep("split", "--name", name, "--from", f"{name}.json", cwd=folder))
    limit = f"{60 * options.minutes:.0f}s"
    fit = ("fit", "--preset", "fast-cpu", "--split", name, "--time", limit, "--run", f"runs/{name}", "--resume")
    diary.do(f"fit {name}", lambda: livtrain(*fit, "--device", "cpu", cwd=folder) and None)
    predict = ("predict", test, "--liver", f"runs/{name}", "-o", f"predictions/{name}", "--device", "cpu")
    diary.do(f"predict {name}", lambda: livtrain(*predict, cwd=folder) and None)
    evaluate = ("evaluate", "-p", f"predictions/{name}", "--json", "-q")
    scores = json.loads(livtrain(*evaluate, cwd=folder, capture=True))["cases"][0]["liver"]
    summary = json.loads((folder / "runs" / name / "summary.json").read_text(encoding="utf-8"))
    return (
        f"| {train} | {test} | {summary['steps']} | {summary['train_dice']:.3f} | {scores['dice']:.3f} | "
        f"{scores['hd95']:.1f} |"
    )


def main() -> None:
    """Run both directions and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the raw data sets")
    parser.add_argument("--scratch", type=Path, required=True, help="folder of the benchmark; goes on where it was")
    parser.add_argument("--cases", nargs=2, default=["ircadb-01", "ircadb-07"])
    parser.add_argument("--minutes", type=float, default=5.0, help="of each training")
    parser.add_argument("--spacing", default="3,3,3", help="mm, zyx")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    folder = options.scratch.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: getattr(options, name) for name in ("cases", "minutes", "spacing", "threads")}
    diary = Diary.of(folder / "diary.json", wanted)
    data = options.data.resolve()
    diary.do("ingest", lambda: livprep("ingest", data, "--spacing", options.spacing, "-q", cwd=folder))
    diary.do("window", lambda: livprep("window", "--wl", 40, "--ww", 220, "-q", cwd=folder))
    a, b = options.cases
    rows = [tried(diary, folder, *pair, options) for pair in ((a, b), (b, a))]
    print("| trained on | tried on | steps | Dice on itself | liver Dice | HD95, mm |\n|---|---|---|---|---|---|")
    print("\n".join(rows))
    print(f"\n{options.minutes:g} min each, {options.threads} thread(s), {options.spacing} mm; the scan's own grid.")
    print(describe("livprep", "torch"))
    print(f"Curves and previews: {folder}/runs (not for publication)", file=sys.stderr)


if __name__ == "__main__":
    main()

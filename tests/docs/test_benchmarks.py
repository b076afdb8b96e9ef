"""The benchmarks run end to end at their smallest, without the loaders of others."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from test_scripts import run

SMALLEST = ("--cases", "2", "--size", "48", "--peers", "none", "--patches", "1", "--rounds", "1", "--seconds", "0.1")
QUICK = ("--warm", "0.1", "--cold-rounds", "1", "--cold-patches", "4")


@pytest.mark.nightly
def test_the_loader_benchmark_measures_warm_and_cold_and_weighs_the_arrays(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    report = tmp_path / "loader.md"
    done = run(
        sys.executable, "-m", "benchmarks.bench_loader", *SMALLEST, *QUICK,
        "--scratch", str(tmp_path / "scratch"), "--markdown", str(report), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = report.read_text(encoding="utf-8")
    assert done.stdout.strip() == text.strip()
    assert "Failed" not in text, done.stderr
    rows = re.findall(r"^\| ours: (.*?) \| (\S+) \|", text, re.MULTILINE)
    assert ("balanced, packed, 2 threads", "uint16") in rows
    cold = text.split("## Cold")[1].split("## Sizes")[0]
    assert len(re.findall(r"^\| ours: .* x the chunks\) \|$", cold, re.MULTILINE)) == 2
    sizes = text.split("## Sizes")[1]
    assert re.search(r"^\| train/packed \| [\d.]+ \| [\d.]+ \| [\d.]+ \|$", sizes, re.MULTILINE)


@pytest.mark.nightly
def test_the_ingest_cost_benchmark_sums_the_unavoidable_parts(tmp_path: Path) -> None:
    done = run(
        sys.executable, "-m", "benchmarks.bench_ingest_cost", "--phantoms", "48", "--rounds", "1", "--peers", "none",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    titles = re.findall(r"^## (.*)$", done.stdout, re.MULTILINE)
    assert titles == [
        f"{case}, {grid}" for case in ("ircadb-01", "lits-028") for grid in ("native spacing", "1 mm in-plane")
    ]
    assert done.stdout.count("x the unavoidable parts, at most 1.3 wanted") == 4


@pytest.mark.nightly
def test_the_cascade_benchmark_compares_both_livers(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    tiny = [f"--set={each}" for each in ("width=2", "patch_zyx=[16,16,16]", "batch=1", "overlap=0")]
    done = run(
        sys.executable, "-m", "benchmarks.bench_cascade", "--cases", "3", "--size", "48", "--seconds", "1", "1", *tiny,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\| mean \| [\d.]+ \|", done.stdout, re.MULTILINE)
    assert "at most 0.03 wanted" in done.stdout


@pytest.mark.nightly
def test_the_scaling_benchmark_measures_each_number_of_workers(tmp_path: Path) -> None:
    sizes = ("--cases", "2", "--size", "32", "--rounds", "1", "--folder", str(tmp_path))
    done = run(sys.executable, "-m", "benchmarks.bench_scaling", *sizes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\d) worker\(s\): [\d.]+ s, \d+ MB/s of HU", done.stdout, re.MULTILINE) == ["1", "2"]


@pytest.mark.nightly
def test_the_cohort_benchmark_goes_from_raw_files_to_scores(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    small = ("--cases", "3", "--size", "40", "--spacing", "8,8,8", "--minutes", "0.03", "--threads", "1")
    sets = ("--set", "width=2", "--set", "patch_zyx=[16,16,16]")
    report = tmp_path / "cohort.md"
    command = (sys.executable, "-m", "benchmarks.bench_cohort", "--scratch", str(tmp_path / "scratch"), *small, *sets)
    done = run(*command, "--markdown", str(report), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == report.read_text(encoding="utf-8").strip()
    assert re.search(r"^\| livtrain, fast-cpu \| [\d.]+ \| [\d.]+ \|", done.stdout, re.MULTILINE)
    steps = re.findall(r"^\| ([a-z ]+) \| \d+ \|$", done.stdout, re.MULTILINE)
    assert steps == ["phantom", "ingest", "window", "split", "fit liver", "fit tumor", "predict"]
    again = run(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "bench_cohort: fit" not in again.stderr  # what is done is not done again

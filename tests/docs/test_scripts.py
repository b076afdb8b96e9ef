"""What lies in docs/ and benchmarks/ runs, at small sizes; what takes seconds does so in a step of its own in CI."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program with this environment's console scripts on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"} | environment
    return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=280)


def test_the_channel_picture_is_drawn(tmp_path: Path) -> None:
    out = tmp_path / "channels.png"
    done = run(sys.executable, str(ROOT / "docs" / "draw_channels.py"), str(out), "--size", "48", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.nightly
def test_the_ingest_benchmark_prints_a_line_a_case(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "benchmarks.bench_ingest", "--size", "32", "--cases", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\S+) .* published$", done.stdout, re.MULTILINE) == ["ircadb-01", "lits-000"]


@pytest.mark.nightly
def test_the_metrics_benchmark_finds_equal_numbers(tmp_path: Path) -> None:
    sizes = ("--size", "64", "--slices", "40", "--rounds", "1", "--markdown", str(tmp_path / "metrics.md"))
    done = run(sys.executable, "-m", "benchmarks.bench_metrics", *sizes, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\| the (?:liver|whole case) .* × \|", done.stdout, re.MULTILINE)) == 2
    assert "64 × 64 × 40" in (tmp_path / "metrics.md").read_text(encoding="utf-8")


@pytest.mark.nightly
def test_the_demo_runs_from_phantoms_to_a_score_and_again(tmp_path: Path) -> None:
    """Two seconds of training show that every step fits the next; `make demo` trains long enough to be good."""
    folder = tmp_path / "a path with spaces"
    folder.mkdir()
    for _ in range(2):
        done = run("bash", str(ROOT / "docs" / "demo.sh"), cwd=folder, DEMO="demo", DEMO_SECONDS="2")
        assert done.returncode == 0, done.stdout + done.stderr
    assert "nnU-Net dice" in done.stdout
    assert (folder / "demo" / "runs" / "liver" / "loss.png").is_file()
    assert len(list((folder / "demo" / "predictions").glob("*.nii.gz"))) == 2


def test_the_demo_leaves_a_foreign_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("mine")
    done = run("bash", str(ROOT / "docs" / "demo.sh"), cwd=tmp_path, DEMO="demo")
    assert done.returncode == 2
    assert "was not made by make demo" in done.stderr
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md", "docs/own-data.md", "docs/store-format.md"])
def test_links_of_the_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.nightly
def test_the_benchmark_of_series_faults_counts_ten_of_ten(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "benchmarks.bench_series_faults", cwd=tmp_path)
    assert "| **caught** | **10 of 10** |" in done.stdout


@pytest.mark.nightly
def test_the_benchmark_of_augmentation_prints_its_tables(tmp_path: Path) -> None:
    small = ["-m", "benchmarks.bench_augment", "--patches", "2", "--patch", "16", "16", "16"]
    done = run(sys.executable, *small, "--rounds", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\| ours \| 16x16x16 \| 2 \| \d", done.stdout, re.MULTILINE), done.stdout
    done = run(sys.executable, *small, "--parts", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\| [a-z ,_()]+ \| [\d.]+ \| [\d.]+ \|$", done.stdout, re.MULTILINE)) == 13, done.stdout

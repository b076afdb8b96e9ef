"""The site: the tutorial's commands run in order, the pictures are drawn, the pages build without a warning.

CI runs them in a step of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program with this environment's console scripts on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = os.environ | {"PATH": path, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}", "MPLBACKEND": "Agg"}
    return subprocess.run(
        command, cwd=cwd, env=settings | environment, capture_output=True, text=True, timeout=290, check=False
    )


@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_the_tutorial_runs_as_it_is_written(tmp_path: Path) -> None:
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 8
    script = tmp_path / "tutorial.sh"
    script.write_text("set -euo pipefail\n" + "".join(blocks), encoding="utf-8")
    folder = tmp_path / "empty"
    folder.mkdir()
    done = run("bash", str(script), cwd=folder, LIVPREP_STORE="")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in ("windows.png", "ircadb-01.png", "report.html", "runs/liver/report.html", "scores.html"):
        assert (folder / name).stat().st_size > 1000, name
    assert (folder / "nnUNet_raw/Dataset003_Liver/dataset.json").is_file()


@pytest.mark.nightly
def test_the_pictures_of_the_guides_are_drawn(tmp_path: Path) -> None:
    done = run(
        sys.executable, str(DOCS / "draw_pictures.py"), str(tmp_path), "--size", "48", "--cases", "1", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {"preview.png", "window-search.png", "window-channels.png"}
    assert names <= {path.name for path in (DOCS / "pictures").glob("*.png")}


@pytest.mark.nightly
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site"), cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "tutorial/index.html", "api/livprep/index.html", "codes/index.html"} <= pages
    codes = (tmp_path / "site/codes/index.html").read_text(encoding="utf-8")
    assert "MASK_MISSING" in codes
    for page in (tmp_path / "site").rglob("*.html"):  # nobody who reads it is sent to another server
        found = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)\"", page.read_text("utf-8"))
        assert found == [], page

"""`livtrain report RUN`: one page of a run's files, finished or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from livcli.livtrain_report import report
from livprep.errors import RunError
from livtrain.config import Settings
from livtrain.evaluate.run_page import read_records, worst_first, write_run_page
from livtrain.figures import draw_curves

RECORDS = [
    {"step": 1, "loss": 1.5},
    {"step": 10, "val_dice": 0.5, "cases": {"p1": {"liver": 0.9}, "p2": {"liver": 0.2}, "p3": {"liver": None}}},
    {"step": 20, "val_dice": 0.6, "cases": {"p1": {"liver": 0.4}, "p2": {"liver": 0.7}, "p3": {"liver": None}}},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "liver"
    (folder / "previews").mkdir(parents=True)
    settings = Settings(stage="liver", preset="fast-cpu", windows=({"name": "w-1", "wl": 40.0, "ww": 220.0},))
    (folder / "config.yaml").write_text(settings.dump_yaml(), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS) + '{"step": 3')
    for path in (folder / "loss.png", folder / "previews/p1.png", folder / "previews/p2.png"):
        draw_curves(path, "t", "y", {"loss": [(1, 1.5), (2, 1.0)]})
    return folder


def test_cases_come_worst_first_with_their_best(run: Path) -> None:
    found = worst_first(read_records(run / "metrics.jsonl"))
    assert [(each.case, each.last, each.best, each.best_step) for each in found] == [
        ("p1", 0.4, 0.9, 10),
        ("p2", 0.7, 0.7, 20),
    ]


def test_the_page_of_a_run_that_goes_on(run: Path) -> None:
    done = CliRunner().invoke(report, [str(run)])
    assert done.exit_code == 0, done.output
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "not finished" in page
    assert page.index("Slices of p1") < page.index("Slices of p2")
    assert page.count("data:image/png;base64,") == 3
    for foreign in ("<script", "http://", "https://"):
        assert foreign not in page


def test_the_page_of_a_finished_run_goes_where_it_is_asked_to(run: Path, tmp_path: Path) -> None:
    summary = {"steps": 1200, "best_val_dice": 0.6, "best_step": 20, "seconds": 90.0, "patches_per_s": 12.34,
               "data_wait_fraction": 0.05, "device": "cpu", "parameters": 9498260, "stopped_by": "<i>"}  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    page = write_run_page(run, tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    for text in ("1,200", "9,498,260", "0.600", "at step 20", "1.5 min", "5.0% waiting", "&lt;i&gt;"):
        assert text in page
    assert not (run / "report.html").exists()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no config\.yaml; expected the folder of a `livtrain fit`") as caught:
        write_run_page(tmp_path)
    assert caught.value.code == "RUN_MISSING"

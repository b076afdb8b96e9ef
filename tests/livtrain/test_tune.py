"""Post-processing chosen on validation: kept only where it helps, never from test cases, and used by predict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from livcli.livtrain_predict import predict
from livcli.livtrain_tune import tune as tune_command
from livprep.cohort import IngestRequest, plan_ingest, run_ingest
from livprep.errors import RunError, UsageError
from livprep.formats.nifti import write_nifti
from livprep.geometry import Geometry
from livprep.prepare import Preparation
from livprep.splits import Split
from livprep.store import Store, open_store
from livprep.volume import LabelledVolume, Volume
from livtrain.checkpoint import Checkpoint, load_checkpoint
from livtrain.cleanup import TUNED, Cleanup, read_tuned, write_tuned
from livtrain.config import Settings, WindowSetting
from livtrain.inference import LoadedScan, PredictOptions, Predictor, StageModel, load_stage
from livtrain.networks import build_network
from livtrain.stages import get_stage
from livtrain.tuning import best, tune

torch.set_num_threads(2)
SPACING = (3.0, 1.0, 1.0)
WINDOW = WindowSetting(name="wide", wl=0.0, ww=400.0)  # [-200, 200] HU


class Pointwise(nn.Module):
    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        return self.logits(x_BCZYX[:, :1])


def _shy_liver(x: Tensor) -> Tensor:
    return 4 * (x - 0.75) - 0.6  # 0.35 at 100 HU, less below


def _sure_liver(x: Tensor) -> Tensor:
    return 100 * (x - 0.625)


def _tumor(x: Tensor) -> Tensor:
    return 100 * (0.1 - (x - 0.5).abs())  # within 40 HU of 0


def _multiclass(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x), _sure_liver(x), _tumor(x)], dim=1)


def _write_case(folder: Path, number: int) -> None:
    """A liver of 100 HU, a tumor of 0 HU, and spots of 0 HU that are none."""
    hu, labels = np.full((14, 48, 56), -100, dtype=np.int16), np.zeros((14, 48, 56), dtype=np.uint8)
    hu[3:11, 8:34, 6 : 34 + number], labels[3:11, 8:34, 6 : 34 + number] = 100, 1
    hu[5:9, 14:24, 12:22], labels[5:9, 14:24, 12:22] = 0, 2
    for x in (24, 28):
        hu[5:7, 28:30, x : x + 2] = 0
    hu[4:6, 40:46, 44:52] = 100  # another bright organ
    folder.mkdir(exist_ok=True)
    for name, values in (("volume", hu), ("segmentation", labels)):
        write_nifti(folder / f"{name}-{number}.nii.gz", values, Geometry(hu.shape, SPACING))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for number in (3, 4, 5):
        _write_case(tmp_path / "lits", number)
    path = tmp_path / "liver.zarr"
    list(run_ingest(plan_ingest(IngestRequest((tmp_path / "lits",), path, workers=1))))
    opened = open_store(path)
    opened.write_split(Split(name="default", seed=0, train=("lits-003",), val=("lits-004",), test=("lits-005",)))
    return open_store(path)


def _run(folder: Path, stage: str, val: tuple[str, ...] = ("lits-004",)) -> Path:
    settings = Settings(stage=stage, width=2, windows=(WINDOW,), patch_zyx=(8, 16, 16), overlap=0.0)
    network = build_network(settings.network, 1, get_stage(stage).out_channels, settings.width)
    folder.mkdir(parents=True)
    cases = {"train": ["lits-003"], "val": list(val)}
    Checkpoint(network.state_dict(), settings, Preparation().as_dict(), step=1, cases=cases).save(folder / "best.pt")
    return folder


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[Tensor], Tensor]]:
    """Logits by name of the run folder, in place of what its weights would say."""
    chosen: dict[str, Callable[[Tensor], Tensor]] = {}

    def load(run: Path, expected: object) -> StageModel:
        return replace(load_stage(run, ("liver", "tumor", "multiclass")), network=Pointwise(chosen[run.name]))

    monkeypatch.setattr("livtrain.tuning.load_stage", load)
    return chosen


def test_a_threshold_that_helps_is_kept_and_used(
    tmp_path: Path, store: Store, networks: dict[str, Callable[[Tensor], Tensor]]
) -> None:
    run = _run(tmp_path / "shy", "liver")
    networks["shy"] = _shy_liver
    found = tune(run, store)
    assert (found.cases, found.chosen) == (("lits-004",), {"liver_threshold": 0.3})
    assert (found.before["liver"], found.tried) == (0.0, 20)
    assert found.after["liver"] == pytest.approx(1.0)
    recorded = json.loads((run / TUNED).read_text())
    assert recorded["cases"] == ["lits-004"]
    assert read_tuned(run) == Cleanup(liver_threshold=0.3)
    model = replace(load_stage(run, ("liver",)), network=Pointwise(_shy_liver))
    case = store["lits-005"]
    hu = case.read_hu()
    scan = LoadedScan("x", LabelledVolume(Volume(hu, case.geometry)), Preparation(), case.geometry, case.geometry)
    assert np.array_equal(Predictor([model]).predict(scan).labels > 0, case.read_labels() > 0)
    plain = PredictOptions(cleanup=Cleanup(liver_threshold=0.5))  # a choice made there wins
    assert not Predictor([model], options=plain).predict(scan).labels.any()


def test_a_least_lesion_is_found_inside_the_predicted_liver(
    tmp_path: Path, store: Store, networks: dict[str, Callable[[Tensor], Tensor]]
) -> None:
    run, liver = _run(tmp_path / "tumor", "tumor"), _run(tmp_path / "liver", "liver")
    networks.update(tumor=_tumor, liver=_sure_liver)
    found = tune(run, store, liver=[liver])
    assert found.chosen == {"min_lesion_ml": 0.05}  # spots of 8 voxels of 0.003 ml; the tumor has 1.2 ml
    assert found.before["tumor"] < found.after["tumor"] == pytest.approx(1.0)
    with pytest.raises(UsageError, match="of stage tumor, whose liver must be predicted first"):
        tune(run, store)


def test_folds_are_tuned_together_with_livers_that_do_not_know_the_case(
    tmp_path: Path, store: Store, networks: dict[str, Callable[[Tensor], Tensor]]
) -> None:
    networks.update({"fold-0": _shy_liver, "fold-1": _shy_liver})
    for number, case_id in enumerate(("lits-003", "lits-004")):
        _run(tmp_path / "liver" / f"fold-{number}", "liver", (case_id,))
    found = tune(tmp_path / "liver", store)
    assert (found.cases, found.chosen) == (("lits-003", "lits-004"), {"liver_threshold": 0.3})
    for number in (0, 1):
        assert read_tuned(tmp_path / "liver" / f"fold-{number}") == Cleanup(liver_threshold=0.3)
    networks.update(tumor=_tumor, known=lambda x: x - 9, other=_sure_liver)
    runs = [_run(tmp_path / name, "liver") for name in ("known", "other")]
    checkpoint = load_checkpoint(runs[0])
    replace(checkpoint, cases={"train": ["lits-004"], "val": []}).save(runs[0] / "best.pt")
    found = tune(_run(tmp_path / "tumor", "tumor"), store, liver=runs)
    assert found.after["tumor"] == pytest.approx(1.0)  # the liver that was trained on the case finds nothing


def test_defaults_stay_where_nothing_helps(
    tmp_path: Path, store: Store, networks: dict[str, Callable[[Tensor], Tensor]]
) -> None:
    run = _run(tmp_path / "liver", "liver")
    networks["liver"] = _sure_liver
    write_tuned(run, Cleanup(liver_threshold=0.7))  # an earlier choice does not count, and goes
    found = tune(run, store)
    assert (found.chosen, found.before) == ({}, found.after)
    assert read_tuned(run) == Cleanup()


def test_a_multiclass_run_has_both_tuned(
    tmp_path: Path, store: Store, networks: dict[str, Callable[[Tensor], Tensor]]
) -> None:
    run = _run(tmp_path / "both", "multiclass")
    networks["both"] = _multiclass
    found = tune(run, store)
    assert found.chosen == {"min_lesion_ml": 0.05}
    assert found.before["liver"] == found.after["liver"] == pytest.approx(1.0)
    assert found.after["tumor"] == pytest.approx(1.0)


def test_test_cases_are_never_looked_at(
    tmp_path: Path, store: Store, networks: dict[str, Callable[[Tensor], Tensor]]
) -> None:
    networks["a"] = networks["b"] = _sure_liver
    said: list[str] = []
    found = tune(_run(tmp_path / "a", "liver", ("lits-004", "lits-005")), store, say=said.append)
    assert found.cases == ("lits-004",)
    assert said[0] == "left out, for the split now has them in test: lits-005"
    with pytest.raises(UsageError, match="none of its validation cases") as caught:
        tune(_run(tmp_path / "b", "liver", ("lits-005",)), store)
    assert caught.value.code == "SPLIT_INVALID"


def test_of_equals_the_fewest_changes_win_and_small_gains_do_not_count() -> None:
    offered = {"a": (0, 1), "b": (0, 1)}
    equal = {(0, 0): 0.5, (1, 1): 0.8, (0, 1): 0.79995, (1, 0): 0.1}
    assert best([equal], offered, 0.001).changed == {"b": 1}
    assert best([equal], offered, 0.4).changed == {}
    other = {(0, 0): 0.9, (1, 1): 0.0, (0, 1): 0.0, (1, 0): 0.9}
    found = best([equal, other], offered, 0.001)
    assert (found.before, found.changed) == (pytest.approx(0.7), {})


def test_runs_of_different_choices_are_used_without_any(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = [_run(tmp_path / name, "liver") for name in ("a", "b")]
    write_tuned(runs[0], Cleanup(liver_threshold=0.4))
    predictor = Predictor([load_stage(run, ("liver",)) for run in runs])
    assert predictor.tuned == Cleanup()
    assert "tuned to different post-processing" in caplog.text


@pytest.mark.parametrize("text", ["", "{}", '{"cleanup": {"liver_threshold": 2}}', '{"cleanup": {"other": 1}}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    run = _run(tmp_path / "run", "liver")
    (run / TUNED).write_text(text)
    with pytest.raises(RunError, match="tune again or remove it"):
        load_stage(run, ("liver",))


def test_the_command_prints_what_it_kept(tmp_path: Path, store: Store) -> None:
    run = _run(tmp_path / "run", "liver")
    arguments = [str(run), "--store", str(store.path), "--device", "cpu"]
    result = CliRunner().invoke(tune_command, [*arguments, "--json", "-q"], standalone_mode=False)
    assert result.exception is None, result.output
    found = json.loads(result.stdout)
    assert found["cases"] == ["lits-004"]
    assert found["path"] == str(run / TUNED)
    result = CliRunner().invoke(tune_command, arguments, standalone_mode=False)
    assert "20 combinations on 1 cases; kept:" in result.stdout
    write_tuned(run, Cleanup(liver_threshold=0.4, keep_largest=False))
    arguments = ["lits-003", "--store", str(store.path), "--liver", str(run), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(predict, [*arguments, "--device", "cpu"], standalone_mode=False)
    assert "post-processing tuned on validation: liver threshold 0.4, keep largest no" in result.stderr
    assert "% network)" in result.stdout

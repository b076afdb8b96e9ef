from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from livprep.errors import RunError
from livtrain import checkpoint as module
from livtrain.checkpoint import BEST, LAST, Checkpoint, load_checkpoint
from livtrain.config import Settings, WindowSetting


def _checkpoint(step: int = 3) -> Checkpoint:
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return Checkpoint(
        network_state=network.state_dict(),
        settings=Settings(windows=(WindowSetting(name="w", wl=40, ww=220),), width=4),
        preparation={"spacing_mm": [3.0, None, None], "interpolation": "cubic"},
        step=step,
        optimizer_state=optimizer.state_dict(),
        rng={"cpu": torch.get_rng_state()},
        progress={"seconds": 1.5, "best_val_dice": None},
        cases={"train": ["a"], "val": []},
        store_digest="d",
    )


def test_everything_comes_back(tmp_path: Path) -> None:
    saved = _checkpoint()
    saved.save(tmp_path / BEST)
    loaded = load_checkpoint(tmp_path)
    assert loaded.settings == saved.settings
    for name in ("preparation", "step", "progress", "cases", "store_digest"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert all(torch.equal(loaded.network_state[k], v) for k, v in saved.network_state.items())
    assert torch.equal(loaded.rng["cpu"], saved.rng["cpu"])
    assert torch.equal(loaded.optimizer_state["state"][0]["exp_avg"], saved.optimizer_state["state"][0]["exp_avg"])
    assert [path.name for path in tmp_path.iterdir()] == [BEST]


def test_the_file_is_a_plain_torch_file(tmp_path: Path) -> None:
    _checkpoint().save(tmp_path / LAST)
    assert torch.load(tmp_path / LAST, weights_only=True)["step"] == 3


def test_every_flip_and_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / LAST
    _checkpoint().save(path)
    good = path.read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(RunError) as caught:
            load_checkpoint(path)
        assert caught.value.code == "CHECKPOINT_CORRUPT"
    for length in (0, 1, 40, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(RunError, match="do not match the checkpoint's own sha256"):
            load_checkpoint(path)


def _sealed(path: Path, body: bytes) -> Path:
    path.write_bytes(body + b"LIVSHA256" + hashlib.sha256(body).digest())
    return path


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": _Evil()}, tmp_path / "evil")
    for body in ((tmp_path / "evil").read_bytes(), pickle.dumps(_Evil(), protocol=2)):
        with pytest.raises(RunError, match="no checkpoint of livtrain"):
            load_checkpoint(_sealed(tmp_path / "x.pt", body))
    assert not (tmp_path / "pwned").exists()


def test_another_format_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / "new")
    with pytest.raises(RunError, match="found checkpoint format 99, expected 1"):
        load_checkpoint(_sealed(tmp_path / "x.pt", (tmp_path / "new").read_bytes()))


def test_the_other_checkpoint_steps_in(tmp_path: Path) -> None:
    _checkpoint(1).save(tmp_path / BEST)
    _checkpoint(2).save(tmp_path / LAST)
    assert load_checkpoint(tmp_path).step == 1
    assert load_checkpoint(tmp_path, prefer="last").step == 2
    (tmp_path / BEST).write_bytes(b"torn")
    with pytest.warns(RuntimeWarning, match=r"best\.pt.*falling back to last\.pt"):
        assert load_checkpoint(tmp_path).step == 2
    (tmp_path / BEST).unlink()
    with pytest.warns(RuntimeWarning, match=r"best\.pt is missing; last\.pt is used"):
        assert load_checkpoint(tmp_path).step == 2
    (tmp_path / LAST).write_bytes(b"torn")
    with pytest.raises(RunError) as caught:
        load_checkpoint(tmp_path)
    assert caught.value.code == "CHECKPOINT_CORRUPT"


def test_nothing_to_load(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "x.pt"):
        with pytest.raises(RunError) as caught:
            load_checkpoint(path)
        assert caught.value.code == "RUN_MISSING"


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "DISK_FULL"), (errno.EIO, "IO")])
def test_a_failed_save_leaves_the_old_file(
    number: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / LAST
    _checkpoint(1).save(path)

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.os, "fsync", fail)
    with pytest.raises(RunError, match=f"bytes failed \\({os.strerror(number)}\\)") as caught:
        _checkpoint(2).save(path)
    assert caught.value.code == code
    assert load_checkpoint(path).step == 1
    assert [p.name for p in tmp_path.iterdir()] == [LAST]


def test_kills_during_saving_never_cost_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / LAST
    _checkpoint(0).save(path)
    rng = random.Random(1)
    checkpoint = _checkpoint(1)
    for _ in range(20):
        child = os.fork()
        if child == 0:
            while True:
                checkpoint.save(path)
        time.sleep(rng.uniform(0.0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert load_checkpoint(tmp_path, prefer="last").step in (0, 1)


def test_a_sealed_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """The hash says that a file is whole, not that it is one of ours."""
    contents: list[object] = [{"format": 1}, {"format": 1, "settings": 3}, [1], {"format": "1"}, None]
    bodies = []
    for content in contents:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        bodies.append(buffer.getvalue())
    bodies += [
        b"",
        b"PK\3\4",
        b"\x80\x02.",
        b"\x80\x02}q\x00.",
        bodies[0][:200],
        bodies[0].replace(b"format", b"\xff\xff\xff\xff\xff\xff"),
    ]
    for body in bodies:
        (tmp_path / LAST).write_bytes(body + b"LIVSHA256" + hashlib.sha256(body).digest())
        with pytest.raises(RunError) as caught:
            load_checkpoint(tmp_path / LAST)
        assert caught.value.code == "CHECKPOINT_CORRUPT"

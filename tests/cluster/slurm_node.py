"""A real SLURM of one node, started by `tests/cluster/start-slurm`; the tests of this folder are skipped without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

CONF = Path("/run/livprep-slurm/slurm.conf")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Slurm:
    """Calls of SLURM's programs and of ours."""

    environment: dict[str, str]

    def call(self, *words: object, text: str | None = None, check: bool = True) -> str:
        """Run a program and return its output."""
        done = subprocess.run(
            list(map(str, words)),
            input=text,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def submit(self, *words: object, part: str = "") -> int:
        """Hand the script of `livprep submit WORDS` to sbatch; job id."""
        script = self.call("livprep", "submit", *words)
        options = ["--parsable", *([f"--array={part}"] if part else [])]
        return int(self.call("sbatch", *options, text=script + "\n"))

    def state(self, job: object) -> str:
        """State of a job or array task, such as RUNNING."""
        facts = self.call("scontrol", "show", "job", "-o", job)
        return facts.partition("JobState=")[2].partition(" ")[0]

    def states(self, job: int) -> list[str]:
        """States of all tasks of an array, by number."""
        facts = [dict(word.split("=", 1) for word in line.split() if "=" in word)
                 for line in self.call("scontrol", "show", "job", "-o", job).splitlines()]  # fmt: skip
        return [fact["JobState"] for fact in sorted(facts, key=lambda fact: int(fact.get("ArrayTaskId", 0)))]

    def wait(self, job: object, *states: str, seconds: float = 240) -> str:
        """Wait until a job is in one of these states."""
        end = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            assert time.monotonic() < end, f"job {job} is {state}, not {states}\n{self.log()}"
            time.sleep(0.2)
        return state

    def log(self) -> str:
        """What SLURM's daemons wrote last."""
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(CONF.parent.glob("*.log")))


@pytest.fixture(scope="session")
def slurm() -> Slurm:
    """The SLURM that `start-slurm start` started."""
    setting = dict(os.environ) | {"SLURM_CONF": str(CONF), "OMP_NUM_THREADS": "1"}
    setting["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{setting['PATH']}"
    setting["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "cli"), setting.get("PYTHONPATH", ""))))
    there = CONF.is_file() and shutil.which("sinfo") is not None  # without a server, sinfo asks for a minute
    if there:
        done = subprocess.run(["sinfo", "--noheader"], env=setting, capture_output=True, check=False, timeout=60)
        there = done.returncode == 0
    if not there:
        reason = "no SLURM answers; as root: tests/cluster/start-slurm start"
        if os.environ.get("LIVPREP_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    return Slurm(setting)

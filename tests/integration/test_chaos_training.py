"""`make chaos`: both stages of a tiny training while drivers, workers and Ray itself are killed again and again.

The seed decides when. The same command is started until it says that it is finished; then the losses of every step and the weights must
be those of a run that nobody disturbed, bit by bit, in one MLflow run, each step once.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from infra.stores import open_store
from tests.corpora import corpus, negatives, random_prior
from tests.helpers import ROOT, entry_env
from training import checkpoint

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1700)]

KILLS = int(os.environ.get("SUPIR_CHAOS_KILLS", "8"))  # of each stage
SEED = int(os.environ.get("SUPIR_CHAOS_SEED", "1"))
STEPS, EVERY = 200, 5
EARLY = 0.25  # choice: share of the blows that fall while workers are started
EARLY_S = (3.0, 15.0)  # after the command
LATE_S = (0.0, 4.0)  # after a new checkpoint
VICTIMS = ("driver", "a worker", "the node's Ray")
WEIGHTS = {"encoder": "encoder/diffusion_pytorch_model.safetensors", "adaptor": "adaptor/diffusion_pytorch_model.safetensors"}
RESULT = ROOT / "docs" / "results" / "chaos_training.md"


@dataclass
class Run:
    """One stage in one output folder, as a person starts it: two workers, ZeRO-2."""

    place: Path
    stage: str
    name: str
    encoder: str = "none"
    killed: Counter[str] = field(default_factory=Counter)
    resumed_at: list[int] = field(default_factory=list)
    left: list[psutil.Process] = field(default_factory=list)  # what killed drivers left to themselves

    @property
    def output(self) -> Path:
        return self.place / self.name / self.stage

    @property
    def command(self) -> list[str]:
        sizes = {"batch.crop_px": 32, "batch.short_side_px": 48, "batch.global_batch": 4, "batch.micro_batch": 2, "steps": STEPS,
                 "checkpoint.every_steps": EVERY, "validation.images": 1, "validation.every_steps": 50,
                 "prior": self.place / "prior"}  # fmt: skip
        if self.stage == "adaptor":
            sizes |= {"encoder": self.encoder, "negatives": self.place / "n"}
        sets = [word for key, value in sizes.items() for word in ("--set", f"{key}={value}")]
        urls = ["--input", str(self.place / "c"), "--output", str(self.output), "--tracking", f"sqlite:///{self.place}/mlflow.db"]
        return [sys.executable, str(ROOT / "training" / f"train_{self.stage}.py"), *urls, *sets]

    def start(self) -> subprocess.Popen[bytes]:
        env = entry_env(RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2", OMP_NUM_THREADS="1")
        return subprocess.Popen(self.command, env=env, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)

    def to_the_end(self) -> None:
        process = self.start()
        _, error = process.communicate(timeout=400)
        assert process.returncode == 0, error.decode()[-3000:]

    def finished(self) -> bool:
        return (self.output / "finished.json").exists()

    def saved(self) -> int:
        found = sorted(self.output.glob("checkpoints/step-*.json"))
        return int(found[-1].stem[5:]) if found else 0

    def losses(self) -> list[tuple[int, float]]:
        """(images seen, loss) as the tracker has them, of the one run that the checkpoint names."""
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{self.place}/mlflow.db")
        run_id = checkpoint.read(open_store(str(self.output)), self.saved()).meta.tracker_run_id
        return sorted((m.step, m.value) for m in client.get_metric_history(run_id, "loss"))

    def disturbed(self, chance: random.Random) -> None:
        """Killed again and again, then left in peace."""
        while sum(self.killed.values()) < KILLS and not self.finished():
            process = self.start()
            self._wait(process, chance, early=chance.random() < EARLY)
            if process.poll() is None:
                self._strike(chance.choice(VICTIMS), process, chance)
            _, error = process.communicate(timeout=400)
            assert process.returncode in (0, 1, 2, -9), f"ended with {process.returncode}: {error.decode()[-2000:]}"
            self.resumed_at.append(self.saved())
        self.to_the_end()

    def _wait(self, process: subprocess.Popen[bytes], chance: random.Random, *, early: bool) -> None:
        """Some seconds, or until some time after the next checkpoint; until the command ends at the longest."""
        before = self.saved()
        while not early and self.saved() == before and process.poll() is None:
            time.sleep(0.02)
        until = time.monotonic() + chance.uniform(*(EARLY_S if early else LATE_S))
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.02)

    def _strike(self, victim: str, process: subprocess.Popen[bytes], chance: random.Random) -> None:
        """Kill; a worker that died is started again by Ray, so that the driver gets a second blow some seconds later."""
        family = psutil.Process(process.pid).children(recursive=True)
        by_name = {"a worker": "RayTrainWorker", "the node's Ray": "raylet/raylet"}
        targets = [one for one in family if victim in by_name and by_name[victim] in " ".join(cmdline(one))]
        if targets:
            self._kill(victim, chance.choice(targets))
            self._wait(process, chance, early=True)
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            self._kill("driver", psutil.Process(process.pid))
            self.left += family

    def _kill(self, victim: str, target: psutil.Process) -> None:
        try:
            target.kill()
            self.killed[victim] += 1
        except psutil.NoSuchProcess:
            pass


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_both_stages_end_as_if_nobody_had_been_killed(tmp_path: Path) -> None:
    corpus(tmp_path / "c", side_px=96)
    negatives(tmp_path / "n")
    random_prior(tmp_path / "prior")
    begun, chance, rows = time.monotonic(), random.Random(SEED), []
    for stage in ("encoder", "adaptor"):
        encoder = str(tmp_path / "calm" / "encoder" / "encoder") if stage == "adaptor" else "none"
        calm, killed = Run(tmp_path, stage, "calm", encoder), Run(tmp_path, stage, "killed", encoder)
        calm.to_the_end()
        expected = calm.losses()
        assert [seen for seen, _ in expected] == list(range(4, 4 * STEPS + 1, 4))
        killed.disturbed(chance)
        assert sum(killed.killed.values()) >= KILLS // 2, "the kills came too late to disturb anything"
        assert killed.losses() == expected, "each step once, and each loss bit by bit"
        assert (killed.output / WEIGHTS[stage]).read_bytes() == (calm.output / WEIGHTS[stage]).read_bytes()
        _, alive = psutil.wait_procs(killed.left, timeout=120)
        assert not alive, f"killed drivers left processes behind: {[one.name() for one in alive]}"
        rows += [(stage, victim, count) for victim, count in sorted(killed.killed.items())]
        rows += [(stage, "checkpoint at each new start", ", ".join(map(str, killed.resumed_at)))]
    write_result(rows, time.monotonic() - begun)


def write_result(rows: list[tuple[str, str, object]], total_s: float) -> None:
    table = "\n".join(f"| {stage} | {what} | {value} |" for stage, what, value in rows)
    RESULT.write_text(f"""# Chaos: a tiny training of both stages under kills

    SUPIR_CHAOS_SEED={SEED} SUPIR_CHAOS_KILLS={KILLS} .venv/bin/python -m pytest -m chaos tests/integration/test_chaos_training.py

Measured on {os.cpu_count()} cores in {total_s:.0f} s: {STEPS} steps a stage, two workers, ZeRO-2, a checkpoint every {EVERY} steps;
SIGKILL up to {LATE_S[1]:g} s after a new checkpoint, or ({EARLY:.0%} of the blows) {EARLY_S[0]:g} to {EARLY_S[1]:g} s after the command;
drawn from the seed.

| stage | what | times |
| --- | --- | --- |
{table}

Result: the loss of every step, each logged once in one MLflow run, and the bytes of the weights are those of the undisturbed
run; no process of a killed driver was left two minutes later.
""")

"""What the demo remembers in its workspace: commands, seconds and memory of each job, and whether the chain came to its end."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from infra.jobs.chain import Step

NAME = "demo.json"


@dataclass
class JobRecord:
    """One job. `seconds` is what its work took, over interrupted attempts too; `again_s` what it took to find that all is done."""

    job: str
    command: str
    seconds: float | None = None
    peak_gib: float | None = None
    again_s: float | None = None
    done: bool = False
    note: str = ""

    def add(self, seconds: float, peak_gib: float | None, done: bool) -> None:
        """Count an attempt. After the work was done, a shorter attempt only found that it is; a longer one did it anew."""
        seconds = round(seconds, 1)
        if self.done and self.seconds is not None and seconds < self.seconds:
            self.again_s = seconds
            return
        self.seconds = seconds + (0.0 if self.done else self.seconds or 0.0)
        self.peak_gib = max(filter(None, (peak_gib, self.peak_gib)), default=None)
        self.done = done


@dataclass
class DemoRecord:
    """The record of a workspace. `complete`: every job has ended well, so that probably none has anything to do."""

    path: Path
    environment: dict[str, str]
    jobs: list[JobRecord] = field(default_factory=list)
    complete: bool = False

    @staticmethod
    def load(workspace: Path, steps: list[Step], environment: dict[str, str]) -> DemoRecord:
        """The record that is there, as far as its commands are still those of the chain, or a new one."""
        path = workspace / NAME
        try:
            earlier = json.loads(path.read_text())
            known = {one["command"]: JobRecord(**one) for one in earlier["jobs"]}
            complete = bool(earlier["complete"])
        except (OSError, ValueError, KeyError, TypeError):  # none, or of another version
            known, complete = {}, False
        jobs = [known.get(step.command, JobRecord(job=step.job, command=step.command)) for step in steps]
        return DemoRecord(path=path, environment=environment, jobs=jobs, complete=complete and all(job.done for job in jobs))

    def save(self) -> None:
        """Write it as a whole."""
        data = {
            "complete": self.complete,
            "cores": os.cpu_count(),
            "environment": self.environment,
            "jobs": [asdict(job) for job in self.jobs],
        }
        part = self.path.with_name(f".{NAME}.part")
        part.write_text(json.dumps(data, indent=1))
        part.replace(self.path)

    def table(self) -> str:
        """Seconds and memory of each job."""
        lines = [f"{'job':<16}{'seconds':>9}{'GiB':>7}"]
        lines += [f"{job.job:<16}{job.seconds or 0:>9.1f}{job.peak_gib or 0:>7.2f}" for job in self.jobs]
        seconds, most_gib = sum(job.seconds or 0 for job in self.jobs), max((job.peak_gib or 0 for job in self.jobs), default=0)
        return "\n".join([*lines, f"{'together':<16}{seconds:>9.1f}{most_gib:>7.2f}"])

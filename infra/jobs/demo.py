#!/usr/bin/env python3
"""`make demo`: the whole chain on the photographs in examples/, in one local workspace, with one local Ray.

    python infra/jobs/demo.py [--workspace demo-output]

Each job is run as the command that it prints. Run it again and it continues where it was; when all is done it takes seconds.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

if __package__ in (None, ""):  # run as a script: the import root is the repository, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from infra.jobs.chain import Step, chain
from infra.jobs.demo_record import DemoRecord, JobRecord
from infra.jobs.local_ray import ENVIRONMENT, LocalRay, die_with_parent
from infra.jobs.process_tree import PeakMemory

ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 20  # choice: a job that is told to end may finish what it writes
INTERRUPTED = 130  # the shell's exit code after Ctrl-C


def main(argv: list[str]) -> int:
    """Exit code 0: the page is there; 1: a job failed; 130: interrupted."""
    parser = argparse.ArgumentParser(prog="infra/jobs/demo.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workspace", default=os.environ.get("DEMO", "demo-output"), help="folder of everything that is made (default: %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    arguments = parser.parse_args(argv)
    steps = chain(arguments.workspace)
    if arguments.dry_run:
        print("\n".join(step.command for step in steps))
        return 0
    for name in (signal.SIGTERM, signal.SIGINT):  # the latter too: a shell may have started this one with it ignored
        signal.signal(name, _interrupt)
    return run(arguments.workspace, steps)


def run(workspace: str, steps: list[Step]) -> int:
    """All jobs, with one Ray for them if there may be work to do."""
    folder = (ROOT / workspace).resolve()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    record = DemoRecord.load(folder, steps, environment)
    began = time.monotonic()
    ray = LocalRay(folder / "ray.json")
    try:
        if not record.complete:
            print("starting a local Ray for all jobs", flush=True)
            ray.start()
        code = run_all(steps, record, folder, environment | ENVIRONMENT | ray.environment)
    except KeyboardInterrupt:
        print("\ninterrupted: make demo again continues here", flush=True)
        return INTERRUPTED
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        record.save()
        ray.stop()
    if code == 0:
        farewell(folder, workspace, record, time.monotonic() - began)
    return code


def run_all(steps: list[Step], record: DemoRecord, folder: Path, environment: dict[str, str]) -> int:
    """One job after another; stops at the first that fails."""
    record.complete = False
    for number, (step, job) in enumerate(zip(steps, record.jobs, strict=True), start=1):
        print(f"\n[{number}/{len(steps)}] {step.command}", flush=True)
        record.save()  # the page shows it
        code = run_job(step, job, folder / "logs" / f"{step.job}.log", environment)
        if code:
            print(f"{step.job} failed with exit code {code}: the whole of what it said is in {folder}/logs/{step.job}.log", file=sys.stderr)
            return 1
    record.complete = True
    return 0


def run_job(step: Step, job: JobRecord, log: Path, environment: dict[str, str]) -> int:
    """Run one job, show what it says, measure what it takes."""
    began, code = time.monotonic(), -1
    peak = PeakMemory()
    try:
        with peak, log.open("ab") as file:
            code = follow(step, file, environment)
    finally:
        seconds = time.monotonic() - began
        job.add(seconds, peak.peak_gib, done=code == 0)
    print(f"  {step.job}: {seconds:.1f} s" + (f", {peak.peak_gib:.1f} GiB at most" if peak.peak_gib else ""), flush=True)
    return code


def follow(step: Step, log: IO[bytes], environment: dict[str, str]) -> int:
    """Run the command; what it says goes to the log, and without its printed configuration to the screen."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    process = subprocess.Popen(
        [sys.executable, *step.arguments],
        cwd=ROOT,
        env=os.environ | environment | {"PATH": path, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=die_with_parent(),
    )
    assert process.stdout is not None, "its output is a pipe"
    try:
        shown = Shown()
        for line in process.stdout:
            log.write(line)
            shown.show(line.decode(errors="replace").rstrip())
        return process.wait()
    finally:
        end(process)


class Shown:
    """What a person sees of a job: its words, not the configuration that it prints first, nor chatter of libraries."""

    def __init__(self) -> None:
        self._inside = False

    def show(self, line: str) -> None:
        """Print a line if it is for people."""
        if line == "{":
            self._inside = True
        if not (self._inside or not line or "logging.cc" in line or line.startswith(("{", "20")) or "Warning" in line):
            print(f"  {line}", flush=True)
        if line == "}":
            self._inside = False


def end(process: subprocess.Popen[bytes]) -> None:
    """End a job that is still there: asked first, then killed."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    if process.poll() is None:
        process.kill()
        process.wait()


def farewell(folder: Path, workspace: str, record: DemoRecord, seconds: float) -> None:
    """Where everything lies."""
    print(f"\n{record.table()}\nthis run: {seconds:.0f} s\n\nThe page:  {(folder / 'index.html').as_uri()}")
    print(f"MLflow:    make mlflow{'' if workspace == 'demo-output' else f' DEMO={workspace}'}   then http://127.0.0.1:5000", flush=True)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

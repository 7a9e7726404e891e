"""One Ray head of our own on the loopback address, for all jobs of a demo. Stopped by its own handle, never by `ray stop`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

READY_S = 60  # choice: it takes 5 to 8 s here
STOP_S = 20  # choice: a head that does not end by itself in that time is killed
OBJECT_STORE_BYTES = 100_000_000  # choice: shards do not pass through it; near Ray's minimum
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}


class LocalRay:
    """A head that lives as long as this process: if this one is killed, the kernel tells the head to end."""

    def __init__(self, note: Path) -> None:
        self._note = note  # where it lies, for the run after one that was killed
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self.port = 0

    @property
    def environment(self) -> dict[str, str]:
        """What a job needs to find it."""
        return ENVIRONMENT | ({"RAY_ADDRESS": f"127.0.0.1:{self.port}"} if self._process else {})

    def start(self) -> None:
        """Start it and wait until it answers. RuntimeError with the end of its log if it does not."""
        self.sweep()
        self._folder = Path(tempfile.mkdtemp(prefix="supir-ray-"))  # short: sockets have names of at most 107 bytes
        self._note.write_text(json.dumps({"folder": str(self._folder)}))
        self.port = free_port()
        log = self._folder / "head.log"
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--head",
            "--block",
            "--node-ip-address=127.0.0.1",
            f"--port={self.port}",
            f"--ray-client-server-port={free_port()}",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--metrics-export-port={free_port()}",
            "--include-dashboard=false",
            f"--temp-dir={self._folder}",
            f"--num-cpus={max(2, os.cpu_count() or 2)}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
        ]
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command, env=os.environ | ENVIRONMENT, stdout=out, stderr=out, start_new_session=True, preexec_fn=die_with_parent()
            )
        self._wait(log)

    def _wait(self, log: Path) -> None:
        assert self._process is not None, "started before it is waited for"
        end = time.monotonic() + READY_S
        while "--block" not in log.read_text(errors="replace"):  # what it says when all its parts are up
            if self._process.poll() is not None or time.monotonic() > end:
                text = log.read_text(errors="replace")[-1500:]
                self.stop()
                raise RuntimeError(f"the local Ray head did not start within {READY_S} s; it said:\n{text}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it and everything it started."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            kill_group(process.pid)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._note.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a head left whose demo was killed."""
        with suppress(OSError, ValueError, KeyError):
            folder = Path(json.loads(self._note.read_text())["folder"])
            if folder.name.startswith("supir-ray-"):
                shutil.rmtree(folder, ignore_errors=True)
            self._note.unlink()


def kill_group(pid: int) -> None:
    """Kill what is left of a session that a process of ours leads."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def die_with_parent() -> Callable[[], None] | None:
    """What a child calls before it becomes another program, so that it is ended (SIGTERM) when this process dies. Linux only.

    The system means the thread that starts the child: start it from one that lasts as long as the child should.
    """
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    set_parent_death_signal = 1  # linux/prctl.h: PR_SET_PDEATHSIG
    return lambda: prctl(set_parent_death_signal, signal.SIGTERM)


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""Starting Ray on one machine for one job: what around `ray.init` makes it take two or three seconds instead of four. Imports no ray.

Ray 2.60 starts eight processes; on a laptop three of them serve nobody. Measured on two cores: docs/results/ingest.md.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

# As Ray 2.60 names them: no nodes to scale, no log that the driver shows, no dashboard. What is not found is left alone; when the
# dashboard is gone, ray.init goes on without it.
HELPERS = ("monitor.py", "log_monitor.py", "dashboard.py")
LOOK_S = 0.03  # choice: a helper is ended before its imports
DASHBOARD_PARTS = "ray.dashboard.optional_deps"  # cannot be imported: Ray takes itself for installed without the dashboard


@contextmanager
def quick_start(variables: Mapping[str, str]) -> Iterator[None]:
    """While `ray.init` runs: its processes inherit `variables`, and nothing is started or waited for that one machine does not need."""
    with ExitStack() as around:
        around.enter_context(_environment(variables))
        around.enter_context(_without(DASHBOARD_PARTS))
        around.enter_context(_ending(HELPERS))
        yield


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """This process's environment with these variables, for what is started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _without(module: str) -> Iterator[None]:
    """As if a module were not installed."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # Python's own word for it: importing it raises
    try:
        yield
    finally:
        del sys.modules[module]


@contextmanager
def _ending(names: tuple[str, ...]) -> Iterator[None]:
    """End child processes that run these scripts as soon as they show up."""
    started = threading.Event()

    def watch() -> None:
        while not started.wait(LOOK_S):
            _end(names)

    watcher = threading.Thread(target=watch, name="without helpers", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        started.set()
        watcher.join()
    _end(names)


def _end(names: tuple[str, ...]) -> None:
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if any(Path(word).name in names for word in process.cmdline()):
                process.kill()


@contextmanager
def without_chatter() -> Iterator[None]:
    """Hold back what is written to file descriptor 2: ray's C++ half announces its log level there. Shown if the start fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        terminal = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)

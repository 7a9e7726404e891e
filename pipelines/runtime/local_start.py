"""Starting Ray on one machine for one job: what around `ray.init` makes it take one second instead of four. Imports no ray.

Ray 2.60 starts eight processes; on a laptop five of them, all of Python, serve nobody. Measured on two cores: docs/results/ingest.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

KNOWN = "2.60."  # the Ray whose private parts these are; another one starts as it does
LOOK_S = 0.03  # choice: how often it is looked whether the node is there
NODE_S = 20  # choice: then Ray itself asks, and waits as long as it does
DASHBOARD_PARTS = "ray.dashboard.optional_deps"  # cannot be imported: Ray takes itself for installed without the dashboard
UNUSED = ("monitor", "log_monitor", "dashboard")  # no nodes to scale, no log that the driver shows, no page; Ray goes on without them
# Measured: workers that Ray starts ahead, one for each core, make it start later than those that are asked for.
SETTINGS = {"RAY_prestart_worker_first_driver": "0"}
NOTHING = [sys.executable, "-I", "-S", "-c", ""]
# The node tells one agent its numbers and asks the other for workers' environments. It wants them alive, and their ports in files.
AGENTS = ("--dashboard_agent_command=", "--runtime_env_agent_command=")
NOT_IN_USE = -1
AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
STAND_IN = subprocess.list2cmdline([sys.executable, "-I", "-S", str(Path(__file__).with_name("stand_in.py"))])


@contextmanager
def quick_start(ray: Any, variables: Mapping[str, str]) -> Iterator[None]:
    """While `ray.init` runs: its processes inherit `variables`, and nothing is started or waited for that one machine does not need."""
    with ExitStack() as around:
        around.enter_context(_environment({**variables, **SETTINGS}))
        if ray.__version__.startswith(KNOWN):
            services = ray._private.services
            start, look = _fewer_processes(services, ray._raylet.persist_port), _asking_often(services, ray._private.state.GlobalState)
            around.enter_context(_without(DASHBOARD_PARTS))
            around.enter_context(_replaced(services, "start_ray_process", start))
            around.enter_context(_replaced(services, "get_node", look))
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
def _replaced(module: Any, name: str, new: Callable[..., Any]) -> Iterator[None]:
    old = getattr(module, name)
    setattr(module, name, new)
    try:
        yield
    finally:
        setattr(module, name, old)


def _fewer_processes(services: Any, persist_port: Callable[..., None]) -> Callable[..., Any]:
    """`services.start_ray_process` that starts nothing in place of what is not used, and stand-ins in place of the node's agents."""
    start = services.start_ray_process

    def start_fewer(command: list[str], process_type: str, *more: Any, **options: Any) -> Any:
        if process_type == "raylet":
            command = _without_agents(command, persist_port)
        return start(NOTHING if process_type in UNUSED else command, process_type, *more, **options)

    return start_fewer


def _without_agents(command: list[str], persist_port: Callable[..., None]) -> list[str]:
    """The node's command line with stand-ins; the files that it waits for are written before it starts."""
    told = dict(word.split("=", 1) for word in command if "=" in word)
    for port in AGENT_PORTS:
        persist_port(told["--session_dir"], told["--node_id"], port, NOT_IN_USE)
    return [next((agent + STAND_IN for agent in AGENTS if word.startswith(agent)), word) for word in command]


def _asking_often(services: Any, new_state: Callable[[], Any]) -> Callable[..., Any]:
    """`services.get_node` asks whether the node is there, and again a second later: look often before it asks."""
    ask = services.get_node

    def wait_and_ask(gcs_address: str, node_id: str) -> Any:
        state, end = new_state(), time.monotonic() + NODE_S
        state._initialize_global_state(services._get_gcs_client_options(gcs_address))
        while time.monotonic() < end and all(node["NodeID"] != node_id for node in state.node_table()):
            time.sleep(LOOK_S)
        return ask(gcs_address, node_id)

    return wait_and_ask


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

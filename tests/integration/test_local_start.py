"""A local Ray that starts without what one machine does not need: it works, and all of it ends with its driver, however that ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 30  # processes end within a second or two
DRIVER = """
import json, sys, psutil, ray
from pipelines.runtime.cluster import connection
with connection():
    answer = ray.get(ray.remote(num_cpus=1)(lambda: "worked").remote())
    family = [one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]
    told = {"answer": answer, "pids": [one.pid for one in family], "lines": [" ".join(one.cmdline()) for one in family]}
    print(json.dumps(told), flush=True)
    sys.stdin.read()
"""


def gone(pids: list[int]) -> bool:
    """Whether all of them have ended."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("how", ["end", "kill"])
def test_a_local_ray_has_stand_ins_and_ends_with_its_driver(how: str) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert driver.stdin is not None
    assert driver.stdout is not None
    told = json.loads(driver.stdout.readline())
    try:
        assert told["answer"] == "worked"
        assert sum(line.endswith("stand_in.py") and "raylet" not in line for line in told["lines"]) == 2, told["lines"]
        assert not any(name in line for name in ("monitor.py", "dashboard.py", "agent.py") for line in told["lines"]), told["lines"]
    finally:
        driver.stdin.close() if how == "end" else driver.send_signal(signal.SIGKILL)
        driver.wait(WAIT_S)
    assert gone(told["pids"]), told["lines"]

"""What this machine has left."""

from __future__ import annotations

from pathlib import Path

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Memory that a new process may take, of the machine and of its control group. None where nothing tells."""
    return min((one for one in (_meminfo(), _cgroup("memory.max", "memory.current")) if one is not None), default=None)


def _meminfo() -> int | None:
    if not MEMINFO.exists():
        return None
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None


def _cgroup(limit: str, used: str) -> int | None:
    """What a container may still take."""
    try:
        most, now = (CGROUP / limit).read_text().strip(), (CGROUP / used).read_text().strip()
    except OSError:
        return None
    return None if most == "max" else max(0, int(most) - int(now))

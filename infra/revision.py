"""Which code is running: the commit of a checkout, or a digest of the files where there is none (an uploaded job, an image)."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("infra", "supir_model", "training", "pipelines")


def code_version() -> str:
    """SUPIR_CODE_VERSION, else the commit ("-changed" where files differ from it), else `files:` and 12 digits of a digest."""
    given = os.environ.get("SUPIR_CODE_VERSION")
    return given or _commit() or f"files:{_digest()}"


def _commit() -> str | None:
    if not (ROOT / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "HEAD")
        return f"{head}-changed" if _git("status", "--porcelain", "--untracked-files=no", "--", *LAYERS) else head
    except (OSError, subprocess.SubprocessError):  # no git on this machine, or not one that trusts this folder
        return None


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def _digest() -> str:
    total = hashlib.sha256()
    for path in sorted(path for layer in LAYERS for path in Path(ROOT, layer).rglob("*.py")):
        total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:12]

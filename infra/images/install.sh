#!/usr/bin/env bash
# Build a virtual environment from the lock: infra/images/install.sh FOLDER. Uses uv where it is on the path, pip otherwise.
# TORCH_INDEX: address of PyTorch's CPU wheels, for machines without a GPU (README, "Installation").
set -euo pipefail
venv=$1
lock=$(dirname "$0")/../../requirements.txt
python=${PYTHON:-python3}

"$python" - <<'PY' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"Python {sys.version.split()[0]} found, 3.11 or later is needed: set PYTHON=/path/to/python3.11")
PY
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
if command -v uv >/dev/null; then
    # uv does not read pip's configuration: hand over the sources that this machine's pip uses
    pip_option() { "$venv/bin/pip" config get "global.$1" 2>/dev/null || "$venv/bin/pip" config get ":env:.$1" 2>/dev/null || true; }
    export UV_FIND_LINKS="${UV_FIND_LINKS:-$(pip_option find-links)}" UV_EXTRA_INDEX_URL="${TORCH_INDEX:-$(pip_option extra-index-url)}"
    uv pip install --quiet --python "$venv/bin/python" --index-strategy unsafe-best-match -r "$lock"
else
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r "$lock"
fi
touch "$venv/.complete"

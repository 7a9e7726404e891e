#!/usr/bin/env bash
# An MLflow server on sqlite with local artifacts: infra/services/mlflow.sh FOLDER [HOST] [PORT]
# MLflow answers 403 to an unknown Host header: MLFLOW_ALLOWED_HOSTS names what people type (host:port, comma-separated).
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
host=${2:-127.0.0.1}
port=${3:-5000}
cd "$(dirname "$0")/../.."
exec .venv/bin/python -m mlflow server --host "$host" --port "$port" --workers 1 \
    --backend-store-uri "sqlite:///$folder/mlflow.db" --artifacts-destination "$folder/artifacts" \
    --allowed-hosts "${MLFLOW_ALLOWED_HOSTS:-$host:$port,localhost:$port}"

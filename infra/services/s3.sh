#!/usr/bin/env bash
# An S3 server (SeaweedFS) on loopback, for trying S3 without a cloud: infra/services/s3.sh FOLDER [PORT]
# Then: export AWS_ENDPOINT_URL=http://127.0.0.1:PORT AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local-secret
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
port=${2:-8333}
cd "$(dirname "$0")/../.."
umask 077
cat > "$folder/s3.json" <<JSON
{"identities": [{"name": "local", "credentials": [{"accessKey": "${AWS_ACCESS_KEY_ID:-local}", "secretKey": "${AWS_SECRET_ACCESS_KEY:-local-secret}"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
JSON
exec .venv/bin/weed server -dir="$folder" -ip=127.0.0.1 -ip.bind=127.0.0.1 -filer -s3 -s3.port="$port" -s3.config="$folder/s3.json" -volume.max=20

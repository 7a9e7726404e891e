#!/bin/sh
# Caption a corpus on a cluster:  infra/jobs/caption.sh s3://corpus/v1 [--recipe llava_7b] [--set captioner.model=s3://models/llava-7b …]
# What it will take, before it is paid for:  infra/jobs/caption.sh s3://corpus/v1 --dry-run --calibrate 64 --set workers.price_per_hour=2.5
# RAY_ADDRESS is the cluster's dashboard, e.g. http://head:8265 (with a token: RAY_AUTH_MODE=token). Nodes bring dependencies (infra/images)
# and the code travels with the job; the variables of your shell do not. S3 credentials, MLFLOW_TRACKING_URI and HF_TOKEN are in the nodes'
# environment, or handed over:  export RUNTIME_ENV='{"env_vars": {"AWS_ACCESS_KEY_ID": "…", "AWS_SECRET_ACCESS_KEY": "…"}}'
# (whoever sees the dashboard sees them). A recipe that wants GPUs waits half an hour for nodes that have them. The same command again continues.
set -eu
: "${RAY_ADDRESS:?set RAY_ADDRESS to the dashboard of the cluster, e.g. http://head:8265}"
: "${1:?usage: infra/jobs/caption.sh DATASET [flags of pipelines/caption.py]}"
dataset=$1
shift
cd "$(dirname "$0")/../.."
exec ray job submit --working-dir . ${RUNTIME_ENV:+--runtime-env-json "$RUNTIME_ENV"} -- \
    python pipelines/caption.py --recipe llava_13b --input "$dataset" "$@"

#!/bin/sh
# Caption a corpus on a cluster:  infra/jobs/caption.sh s3://corpus/v1 [--recipe llava_7b] [--set captioner.model=/weights/llava …]
# RAY_ADDRESS is the cluster's dashboard, e.g. http://head:8265 (with a token: RAY_AUTH_MODE=token). Nodes bring dependencies (infra/images),
# S3 credentials and the hub's cache in their environment; the code travels with the job. The same command again continues.
set -eu
: "${RAY_ADDRESS:?set RAY_ADDRESS to the dashboard of the cluster, e.g. http://head:8265}"
: "${1:?usage: infra/jobs/caption.sh DATASET [flags of pipelines/caption.py]}"
dataset=$1
shift
cd "$(dirname "$0")/../.."
exec ray job submit --working-dir . -- python pipelines/caption.py --recipe llava_13b --input "$dataset" "$@"

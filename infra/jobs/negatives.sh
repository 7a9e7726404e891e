#!/bin/sh
# Make the negatives of a corpus on a cluster:  infra/jobs/negatives.sh s3://corpus/v1 s3://corpus/negatives-v1 --set prior=s3://models/sdxl-base-1.0
# What it will take, before it is paid for: the same with --dry-run --calibrate 16 --set workers.price_per_hour=2.5
# RAY_ADDRESS is the cluster's dashboard, e.g. http://head:8265 (with a token: RAY_AUTH_MODE=token). `prior` is SDXL in diffusers' layout: a
# folder that every node can read, or one on S3 (put it there once: aws s3 cp --recursive FOLDER s3://models/sdxl-base-1.0). Environment and
# RUNTIME_ENV: as in caption.sh. The same command again continues.
set -eu
: "${RAY_ADDRESS:?set RAY_ADDRESS to the dashboard of the cluster, e.g. http://head:8265}"
: "${2:?usage: infra/jobs/negatives.sh DATASET OUTPUT [flags of pipelines/negatives.py]}"
corpus=$1
output=$2
shift 2
cd "$(dirname "$0")/../.."
exec ray job submit --working-dir . ${RUNTIME_ENV:+--runtime-env-json "$RUNTIME_ENV"} -- \
    python pipelines/negatives.py --recipe paper_100k --input "$corpus" --output "$output" "$@"

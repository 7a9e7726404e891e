#!/bin/sh
# Train both stages on a cluster:  infra/jobs/train.sh s3://corpus/v1 s3://corpus/negatives-v1 s3://runs/supir [flags of both entries]
# RAY_ADDRESS is the cluster's dashboard, MLFLOW_TRACKING_URI the server's address. The same command again continues.
set -eu
: "${RAY_ADDRESS:?set RAY_ADDRESS to the dashboard of the cluster, e.g. http://head:8265}"
: "${3:?usage: infra/jobs/train.sh CORPUS NEGATIVES RUNS [flags of training/train_encoder.py and train_adaptor.py]}"
corpus=$1 negatives=$2 runs=$3
shift 3
cd "$(dirname "$0")/../.."
ray job submit --working-dir . -- python training/train_encoder.py --recipe paper --input "$corpus" --output "$runs/encoder" "$@"
exec ray job submit --working-dir . -- python training/train_adaptor.py --recipe paper --input "$corpus" --output "$runs/adaptor" \
    --set "negatives=$negatives" --set "encoder=$runs/encoder/encoder" "$@"

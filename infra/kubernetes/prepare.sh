#!/bin/sh
# Prints what the manifests need and a repository must not hold: one Secret of keys an office, the public keys, and the problems.
#   sh prepare.sh FOLDER | kubectl apply -f -        makes what keys are missing below FOLDER/keys; run it again after a rotation
set -eu
data=${1:?expected the folder that holds the keys, got none; name one}
problems=${TRUING_PROBLEMS:-problems}
truing init --data "$data" --problems "$problems" >&2
create() { kubectl create "$@" --namespace truing --dry-run=client --output yaml && echo ---; }
for office in registry prefect trainer ingest steward gateway; do
  create secret generic "keys-$office" "--from-file=$data/keys/$office"
done
create configmap keys-public "--from-file=$data/keys/public"
for problem in "$problems"/*/problem.toml; do
  folder=$(dirname "$problem")
  create configmap "problem-$(basename "$folder")" "--from-file=$folder"
done

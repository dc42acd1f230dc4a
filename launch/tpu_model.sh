#!/usr/bin/env bash
# Copies a model from the Hugging Face hub to your bucket: one host downloads it once, for all hosts and all runs.
#
#   launch/tpu_model.sh NAME --zone=us-east5-a --model=Qwen/Qwen3-VL-8B-Instruct --to=gs://bucket/models/Qwen3-VL-8B-Instruct
#
# Then train with --config.model.path=gs://bucket/models/..: each host reads the parts that it needs from the bucket.
# Files that are already in the bucket are not sent again.
#
#   --revision=     a commit of the hub's repository, so that the model stays the same
#   --scratch=      a folder of the host with room for the model; default ~/mtjudge (a TPU VM has a disk of 100 GB); /dev/shm is memory
#   --zone= --project= --internal-ip --iap     where NAME is and how ssh reaches it
#   --dry-run       prints the command and runs nothing

set -euo pipefail
# shellcheck source=launch/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
model='' to='' revision='' scratch=''
parse "$TPU_FLAGS model= to= revision= scratch=" "$@"
name_from_args
need model to
need_bucket to
reach
[[ $model =~ ^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$ ]] || die "--model=$model: give its name on the hub, such as Qwen/Qwen3-VL-8B-Instruct"
remote 0 "$(host model "--model=$model" "--to=$to" ${revision:+"--revision=$revision"} \
  ${scratch:+"--scratch=$scratch"})"

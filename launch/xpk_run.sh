#!/usr/bin/env bash
# Starts a run on a GKE cluster that XPK made (xpk cluster create).
#
#   launch/xpk_run.sh NAME --cluster=tpus --zone=us-east5-a --topology=v5p:4x4x4 --image=REGISTRY/mtjudge:1 \
#     -- mtjudge train --config=.. --workdir=gs://bucket/run
#
# By default XPK never restarts (--max-restarts=0) and allows 30 s for a save. Here status 75, 1 and signals restart; 2 does not.
#
#   --topology=V5P:4X4X4    the slice, as in `mtjudge plan`
#   --image=                an image built from launch/Dockerfile and pushed
#   --restarts=50           most restarts
#   --grace=600             seconds between SIGTERM and SIGKILL; must exceed the time of a save
#   --priority=medium       priority in XPK's queue
#   --project= --zone=      of the cluster
#   --dry-run               prints the command and runs nothing

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cluster='' topology='' image='' restarts=50 grace=600 priority=medium
parse 'zone= project= cluster= topology= image= restarts= grace= priority=' "$@"
name_from_args
need cluster topology image
need_number restarts grace
need_command
where
slice "$topology"
need_image
[[ $priority =~ ^(very-low|low|medium|high|very-high)$ ]] || die "--priority=$priority: very-low, low, medium, high or very-high"
need_tools xpk

# XPK runs the command in a subshell and sends SIGTERM to that: exec makes it the command itself.
run xpk workload create "--workload=$NAME" "--cluster=$cluster" "${WHERE[@]}" "--tpu-type=$TYPE" --num-slices=1 \
  "--docker-image=$image" "--max-restarts=$restarts" --restart-on-exit-codes=1,75 \
  "--termination-grace-period-seconds=$grace" "--priority=$priority" "--command=exec $(quote "${COMMAND[@]}")"

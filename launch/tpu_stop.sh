#!/usr/bin/env bash
# Stops the run on all hosts: SIGTERM, on which all hosts save the same step, then waits, then SIGKILL.
#
#   launch/tpu_stop.sh NAME --zone=us-east5-a
#
# A tpu_keep.sh would start it again: end that first, with Ctrl-C where it runs.
# Removes the lock file that a dead process leaves. The same tpu_run.sh command goes on from what was saved.
#
#   --grace=300     seconds for the save
#   --force         also ends processes of others that hold a TPU: notebooks, TensorBoard, another user's run
#   --zone= --project= --internal-ip --iap     where NAME is and how it is reached
#   --dry-run       prints the command and runs nothing

set -euo pipefail
# shellcheck source=launch/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
grace=300 force=''
parse "$TPU_FLAGS grace= force" "$@"
name_from_args
need_number grace
reach
count_hosts
failed=0
ask_hosts all "$(host stop "--grace=$grace" ${force:+--force})" || failed=$?
[[ ! $dry_run ]] || exit 0
printf '%s\n' "${FACTS[@]}"
((!failed && ${#FACTS[@]} == COUNT)) || { say "error: ${#FACTS[@]} of $COUNT hosts answered, or a TPU is still held: run it again"; exit 1; }

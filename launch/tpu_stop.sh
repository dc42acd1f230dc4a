#!/usr/bin/env bash
# Stops the run on all hosts: sends SIGTERM, on which all hosts save the same step, waits, then sends SIGKILL.
#
#   launch/tpu_stop.sh NAME --zone=us-east5-a
#
# End a tpu_keep.sh first, with Ctrl-C where it runs: it would restart the run.
# Removes the lock file of a dead process. The same tpu_run.sh command continues from the save.
#
#   --grace=300     seconds for the save
#   --force         also ends other processes that hold a TPU: notebooks, TensorBoard, another user's run
#   --zone= --project= --internal-ip --iap     where NAME is and how ssh reaches it
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

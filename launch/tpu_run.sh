#!/usr/bin/env bash
# Starts a command on all hosts of a slice, in the background: it continues without this terminal and its network.
#
#   launch/tpu_run.sh NAME --zone=us-east5-a -- mtjudge train --config=.. --workdir=gs://bucket/run
#
# Each host restarts it after a preemption (status 75) or a crash, but not after an error that you must fix (status 2).
# The command runs in the repository's folder on the hosts; jax finds the other hosts by itself.
#
#   --restarts=50   most restarts; 0 = never
#   --run=train     name of the run; its log is ~/mtjudge/runs/train/log on each host
#   --as-set-up     accepts the commit that the hosts have; without it, it must be the last commit here
#   --follow        shows the log of worker 0; Ctrl-C ends the display, not the run
#   --zone= --project= --internal-ip --iap     where NAME is and how ssh reaches it
#   --dry-run       prints the commands and runs nothing

set -euo pipefail
# shellcheck source=launch/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
restarts=50 run=train follow='' as_set_up='' commit=''
parse "$TPU_FLAGS restarts= run= follow as-set-up" "$@"
name_from_args
need_number restarts
need_command
reach
[[ $run =~ ^[A-Za-z0-9_-]+$ ]] || die "--run=$run: use only A-Z, a-z, 0-9, _ and -"
[[ $as_set_up ]] || commit=$(git -C "$ROOT" rev-parse --verify HEAD 2>/dev/null) || true
count_hosts
start=$(host start "--run=$run" "--restarts=$restarts" ${commit:+"--commit=$commit"} -- "${COMMAND[@]}")
failed=0
ask_hosts all "$start" || failed=$?
if [[ ! $dry_run ]]; then
  printf '%s\n' "${FACTS[@]}"
  started=$(printf '%s\n' "${FACTS[@]}" | grep -c ' started ' || true)
  if ((failed || started != COUNT)); then
    say "error: started on $started of $COUNT hosts, which wait for the others: run launch/tpu_stop.sh $NAME --zone=$zone, then this command again"
    exit $((failed == 2 ? 2 : 1))
  fi
  say "$NAME: started on all $COUNT hosts; see launch/tpu_status.sh and launch/tpu_logs.sh"
fi
[[ ! $follow ]] || remote 0 "$(host logs "--run=$run" --lines=20 --follow)"

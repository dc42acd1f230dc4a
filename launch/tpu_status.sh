#!/usr/bin/env bash
# Prints for each host whether the run is alive or how it ended, and the last line of its log.
#
#   launch/tpu_status.sh NAME --zone=us-east5-a
#
# Exit status: 0 if the run is alive or all hosts succeeded, else that of the hosts together (2, 130, 75, or the first crash);
# also 75 if the slice is gone.
#
#   --wait          checks until the run is alive on no host, or the slice is gone
#   --poll=60       seconds between checks
#   --run=train     as in tpu_run.sh
#   --zone= --project= --internal-ip --iap     where NAME is and how ssh reaches it
#   --dry-run       prints the command and runs nothing

set -euo pipefail
# shellcheck source=launch/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
run=train wait='' poll=60
parse "$TPU_FLAGS run= wait poll=" "$@"
name_from_args
need_number poll
reach
status=$(host status "--run=$run")
gone() { # whether the slice was preempted or deleted, and not only the network failed for a moment
  state ''
  [[ $STATE != ACTIVE ]]
}

running() { printf '%s\n' "${FACTS[@]}" | grep -q ' running '; }

while true; do
  if ! ask_hosts all "$status" && gone; then
    say "$NAME: ${STATE:-not there}: preempted or deleted; launch/tpu_create.sh requests it again"
    exit 75
  fi
  [[ ! $dry_run ]] || exit 0
  ((!${#FACTS[@]})) || printf '%s\n' "${FACTS[@]}"
  if [[ ! $wait ]] || { ((${#FACTS[@]})) && ! running; }; then break; fi
  sleep "$poll"
done
((${#FACTS[@]})) || { say "error: no host of $NAME answered"; exit 1; }
mapfile -t ended < <(printf '%s\n' "${FACTS[@]}" | sed -n 's/.* ended status=\([0-9]*\) .*/\1/p')
exit "$(worst "${ended[@]}")"

#!/usr/bin/env bash
# Says of each host whether the run goes on there, or how it ended, and its last line.
#
#   launch/tpu_status.sh NAME --zone=us-east5-a
#
# Exit status: 0 while it runs or where all ended well, else what the hosts say together (2, 130, 75, or the first crash);
# 75 also where the slice is gone.
#
#   --wait          asks until no host runs any more, or the slice is gone
#   --poll=60       seconds between questions
#   --run=train     as in tpu_run.sh
#   --zone= --project= --internal-ip --iap     where NAME is and how it is reached
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
gone() { # whether the slice was taken away; a network that fails for a moment is not that
  state ''
  [[ $STATE != ACTIVE ]]
}

running() { printf '%s\n' "${FACTS[@]}" | grep -q ' running '; }

while true; do
  if ! ask_hosts all "$status" && gone; then
    say "$NAME: ${STATE:-not there}: taken away, or deleted; launch/tpu_create.sh asks anew"
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

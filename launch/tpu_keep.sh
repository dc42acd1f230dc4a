#!/usr/bin/env bash
# Create, set up, run and watch in one command, again and again until the run has ended well, also when Spot VMs are taken away.
#
#   launch/tpu_keep.sh NAME --topology=v5p:4x4x4 --zone=us-east5-a --spot --jax=0.10.2 --lock=runs/pod.lock \
#     -- mtjudge train --config=configs/mine.py --workdir=gs://bucket/run
#
# Leave it running in tmux on a machine that stays on. The same command again takes up a run that goes on. It ends with the
# run's status: 0, or 2 for what you have to mend, or that of a run that crashed more than --restarts times.
# It deletes nothing at the end: launch/tpu_delete.sh does. It starts again a run that something else has stopped, so
# to stop: Ctrl-C here first, then tpu_stop.sh
#
#   --topology= --spot --reserved --service-account=        as in tpu_create.sh
#   --jax= --lock= --committed                              as in tpu_setup.sh; a lock is needed: slices may be weeks apart
#   --restarts=50                                           as in tpu_run.sh
#   --poll=60                                               seconds between questions
#   --zone= --project= --internal-ip --iap                  where NAME is and how it is reached
#   --dry-run                                               prints the commands and runs nothing

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
topology='' spot='' reserved='' service_account='' jax='' lock='' committed='' restarts=50 poll=60
parse "$TPU_FLAGS topology= spot reserved service-account= jax= lock= committed restarts= poll=" "$@"
name_from_args
need topology jax lock
need_number restarts poll
need_command
where
slice "$topology"
dry=${dry_run:+--dry-run} reach=("${WHERE[@]}" ${internal_ip:+--internal-ip} ${iap:+--iap})

step() { # step script flag..: 2 is the user's to mend and ends all; anything else is tried again
  local status=0
  "$HERE/$1" "$NAME" ${dry:+"$dry"} "${@:2}" || status=$?
  [[ $status != 2 ]] || exit 2
  return "$status"
}

say "to stop: Ctrl-C here first, then tpu_stop.sh"
status=75
while true; do
  if step tpu_create.sh "--topology=$SLICE" "${WHERE[@]}" "--poll=$poll" ${spot:+--spot} ${reserved:+--reserved} \
    ${service_account:+"--service-account=$service_account"}; then
    running=''
    [[ $dry ]] || ! "$HERE/tpu_status.sh" "$NAME" "${reach[@]}" 2>/dev/null | grep -q ' running ' || running=yes
    if [[ $running ]] || { step tpu_setup.sh "${reach[@]}" "--jax=$jax" "--lock=$lock" ${committed:+--committed} &&
      step tpu_run.sh "${reach[@]}" "--restarts=$restarts" -- "${COMMAND[@]}"; }; then
      status=0
      "$HERE/tpu_status.sh" "$NAME" ${dry:+"$dry"} "${reach[@]}" --wait "--poll=$poll" || status=$?
      [[ $status == 75 ]] || exit "$status"
    fi
  fi
  say "$NAME: once more in $poll s"
  sleep "$poll"
done

#!/usr/bin/env bash
# Creates, sets up, runs and watches in one command, again and again until the run succeeds, also if Spot VMs are preempted.
#
#   launch/tpu_keep.sh NAME --topology=v5p:4x4x4 --zone=us-east5-a --spot --jax=0.10.2 --lock=runs/pod.lock \
#     -- mtjudge train --config=.. --workdir=gs://bucket/run
#
# Leave it running in tmux on a machine that stays on. The same command watches a run that is still alive. It ends with the run's
# status: 0, 2 for an error that you must fix, or the status of a run that crashed more than --restarts times.
# It deletes nothing at the end; launch/tpu_delete.sh does. It restarts a run that something else has stopped, so
# to stop: Ctrl-C here first, then tpu_stop.sh
#
#   --topology= --spot --reserved --service-account= --network= --subnetwork= --internal-ips --runtime= --valid-until=
#                                            as in tpu_create.sh
#   --jax= --lock= --python= --extras= --committed
#                                            as in tpu_setup.sh; a lock is required: slices may be weeks apart
#   --restarts=50                            as in tpu_run.sh
#   --poll=60                                seconds between checks, and before a failed step is tried again
#   --tries=5                                successive failures of a step; one after 10 minutes of work counts as the first
#   --zone= --project= --internal-ip --iap   where NAME is and how ssh reaches it
#   --dry-run                                prints the commands and runs nothing

set -euo pipefail
# shellcheck source=launch/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
topology='' spot='' reserved='' restarts=50 poll=60 tries=5
# shellcheck disable=SC2034 # flags, below, reads them
service_account='' network='' subnetwork='' internal_ips='' runtime='' valid_until=''
CREATE='spot reserved service-account= network= subnetwork= internal-ips runtime= valid-until='
SETUP='jax= lock= python= extras= committed'
parse "$TPU_FLAGS topology= restarts= poll= tries= $CREATE $SETUP" "$@"
name_from_args
need topology jax lock
need_number restarts poll tries
need_command
[[ -z $spot || -z $reserved ]] || die "--spot and --reserved: give only one"
reach
slice "$topology"
need_cloud_tpu
need_packages # refuse before anything costs money
need_commit

flags() { # flags "name= switch ..": sets FLAGS to those that are set, for another script
  local name variable
  FLAGS=("${WHERE[@]}" ${dry_run:+--dry-run})
  for name in $1; do
    variable=${name%=}
    variable=${variable//-/_}
    [[ ${!variable} ]] || continue
    if [[ $name == *= ]]; then FLAGS+=("--$name${!variable}"); else FLAGS+=("--$name"); fi
  done
}

step() { # step script flag..: status 2 (the user must fix it) ends the script, 75 (preempted) is retried, others at most --tries times
  local status=0 began=$SECONDS
  "$HERE/$1" "$NAME" "${@:2}" || status=$?
  [[ $status != 2 ]] || exit 2
  if ((!status || status == 75)); then return "$status"; fi
  if [[ "$1 $status" == "$FAILURE" ]] && ((SECONDS - began < 600)); then FAILED=$((FAILED + 1)); else FAILED=1; fi
  FAILURE="$1 $status"
  ((FAILED < tries)) || { say "error: $1 failed $FAILED times in a row with status $status, see above; the slice, if any, still costs"; exit 1; }
  return "$status"
}

slice_is_there() { flags "$CREATE" && step tpu_create.sh "--topology=$SLICE" "--poll=$poll" "${FLAGS[@]}"; }
is_set_up() { flags "internal-ip iap $SETUP" && step tpu_setup.sh "${FLAGS[@]}"; }
starts() { flags "internal-ip iap" && step tpu_run.sh "${FLAGS[@]}" "--restarts=$restarts" --as-set-up -- "${COMMAND[@]}"; }
runs() {
  flags "internal-ip iap"
  [[ ! $dry_run ]] && "$HERE/tpu_status.sh" "$NAME" "${FLAGS[@]}" 2>/dev/null | grep -q ' running '
}

say "to stop: Ctrl-C here first, then tpu_stop.sh"
FAILED=0 FAILURE=''
while true; do
  if slice_is_there && { runs || { is_set_up && starts; }; }; then
    FAILED=0 FAILURE=''
    status=0
    flags "internal-ip iap"
    "$HERE/tpu_status.sh" "$NAME" "${FLAGS[@]}" --wait "--poll=$poll" || status=$?
    [[ $status == 75 ]] || exit "$status"
  fi
  say "$NAME: trying again in $poll s"
  sleep "$poll"
done

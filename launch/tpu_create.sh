#!/usr/bin/env bash
# Requests a TPU slice as a queued resource, waits until it exists, and prints its state.
#
#   launch/tpu_create.sh NAME --topology=v5p:4x4x4 --zone=us-east5-a --spot
#
# The same command continues to wait; it replaces a request that failed or whose Spot VMs were preempted.
#
#   --topology=V5P:4X4X4    the slice, as in `mtjudge plan`; or Google's name, v5p-128
#   --zone= --project=      where to create it; default project: gcloud's
#   --spot | --reserved     cheap, but preempted at any time | from your reservation; with neither: on demand
#   --service-account=      of the VMs; it must be able to read and write your bucket
#   --network= --subnetwork= --internal-ips   as gcloud's; VMs without external addresses need Cloud NAT for pip
#   --runtime=              of the VMs; default: the usual one of the generation
#   --valid-until=6h        gives up after this time; without it the request stays in the queue
#   --poll=30               seconds between checks
#   --dry-run               prints the commands and runs nothing, as if the slice existed

set -euo pipefail
# shellcheck source=launch/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
topology='' spot='' reserved='' service_account='' network='' subnetwork='' internal_ips='' runtime='' valid_until='' poll=30
parse "zone= project= topology= spot reserved service-account= network= subnetwork= internal-ips runtime= valid-until= poll=" "$@"
name_from_args
need topology
need_number poll
reach
slice "$topology"
need_cloud_tpu
[[ -z $spot || -z $reserved ]] || die "--spot and --reserved: give only one"

request() {
  run "${QUEUE[@]}" create "$NAME" "--node-id=$NAME" "${WHERE[@]}" "--accelerator-type=$TYPE" \
    "--runtime-version=${runtime:-$RUNTIME}" ${spot:+--spot} ${reserved:+--reserved} \
    ${service_account:+"--service-account=$service_account"} ${network:+"--network=$network"} \
    ${subnetwork:+"--subnetwork=$subnetwork"} ${internal_ips:+--internal-ips} \
    ${valid_until:+"--valid-until-duration=$valid_until"}
}

say "$NAME: $SLICE, $CHIPS chips, $TYPE in $zone, ${spot:+Spot}${reserved:+reserved}$([[ $spot$reserved ]] || echo on demand)"
state ''
while [[ $STATE == SUSPENDING || $STATE == DELETING ]]; do
  say "$NAME: $STATE, waiting until it is gone" && sleep "$poll"
  state ''
done
if [[ $STATE == FAILED || $STATE == SUSPENDED ]]; then
  say "$NAME: $STATE, requesting it again"
  run "${QUEUE[@]}" delete "$NAME" "${WHERE[@]}" --force --quiet
  STATE=''
elif [[ $STATE && $TYPE_THERE && $TYPE_THERE != "$TYPE" ]]; then
  die "$NAME exists as $TYPE_THERE ($STATE), but $SLICE is $TYPE: take another name, or run launch/tpu_delete.sh $NAME ${WHERE[*]} first"
fi
[[ $STATE ]] || request
last=nothing
while state ACTIVE && [[ $STATE != ACTIVE ]]; do
  [[ $STATE == "$last" ]] || say "$NAME: ${STATE:-not listed yet}"
  last=$STATE
  if [[ $STATE == FAILED || $STATE == SUSPENDING || $STATE == SUSPENDED ]]; then
    "${QUEUE[@]}" describe "$NAME" "${WHERE[@]}" '--format=yaml(state)' >&2
    say "error: $NAME is $STATE: another zone or another size may be free; the same command requests it again"
    [[ $STATE == FAILED ]] || exit 75
    exit 1
  fi
  sleep "$poll"
done
count_hosts
say "$NAME: ACTIVE${COUNT:+, $COUNT hosts}; next: launch/tpu_setup.sh $NAME --zone=$zone --jax=.."

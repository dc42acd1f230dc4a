#!/usr/bin/env bash
# Starts a run as a managed job of SkyPilot, which creates the slice, sets it up, and creates another if Spot VMs are preempted.
#
#   launch/sky_run.sh NAME --topology=v6e:8x8 --zone=us-east5-b --spot -- mtjudge train --config=.. --workdir=gs://bucket/run
#
# Not tried on real hardware. Then: sky jobs queue; sky jobs logs -n NAME; sky jobs cancel -n NAME.
#
#   --topology=V6E:8X8   the slice, as in `mtjudge plan`
#   --zone=              the zone; use the region of the bucket
#   --project=           refused: SkyPilot takes the project from its own config, see docs/pods.md
#   --spot               uses Spot VMs
#   --restarts=50        most restarts after crashes, on the same slice
#   --jax=0.10.2         the version of jax
#   --dry-run            prints the command and runs nothing

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
topology='' spot='' restarts=50 jax=0.10.2
parse 'zone= project= topology= spot restarts= jax=' "$@"
# Only SkyPilot's server reads the project (0.14 drops `workspaces` from what a command sends), so a flag would have no effect.
[[ -z $project ]] || die "--project=$project: SkyPilot takes no project with a command: in ~/.sky/config.yaml write\
 workspaces: {default: {gcp: {project_id: $project}}}, or gcloud config set project $project"
name_from_args
need topology
need_number restarts
need_command
where
slice "$topology"
need_cloud_tpu
need_tools sky
cd "$ROOT"
run sky jobs launch launch/sky.yaml "--name=$NAME" "--infra=gcp/${zone%-*}/$zone" "--gpus=tpu-$TYPE:1" \
  ${spot:+--use-spot} "--env=COMMAND=$(quote "${COMMAND[@]}")" "--env=RESTARTS=$restarts" "--env=JAX_VERSION=$jax" --yes --detach-run

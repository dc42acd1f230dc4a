#!/usr/bin/env bash
# Deletes a slice and its request, which ends their cost. Run launch/tpu_stop.sh first: it waits for the save.
#
#   launch/tpu_delete.sh NAME --zone=us-east5-a [--project=] [--yes] [--dry-run]
#
# gcloud asks before it deletes; --yes answers yes. The bucket is not changed.

set -euo pipefail
# shellcheck source=launch/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
yes=''
parse 'zone= project= yes' "$@"
name_from_args
reach
run gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force ${yes:+--quiet}

#!/usr/bin/env bash
# Shows the end of a run's log, each line with its host.
#
#   launch/tpu_logs.sh NAME --zone=us-east5-a --follow
#
#   --worker=0      the host; all = every host
#   --lines=50      lines to show
#   --follow        continues with new lines
#   --run=train     as in tpu_run.sh
#   --zone= --project= --internal-ip --iap     where NAME is and how ssh reaches it
#   --dry-run       prints the command and runs nothing

set -euo pipefail
# shellcheck source=launch/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
run=train lines=50 worker=0 follow=''
parse "$TPU_FLAGS run= lines= worker= follow" "$@"
name_from_args
need_number lines
reach
[[ $worker =~ ^(all|[0-9]+)$ ]] || die "--worker=$worker: must be a number or all"
remote "$worker" "$(host logs "--run=$run" "--lines=$lines" ${follow:+--follow})"

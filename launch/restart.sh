#!/usr/bin/env bash
# Runs a command and restarts it after a preemption (status 75: saved), a crash (1), or a signal such as SIGKILL or SIGABRT. It
# does not restart after 0, after an error that the user must fix (2), or after Ctrl-C (130).
#
#   launch/restart.sh --restarts=50 -- mtjudge train --config=.. --workdir=..
#
# SIGTERM goes to the command, which saves and ends and is not restarted. The exit status is the command's.
#
#   --restarts=50     most restarts
#   --pause=10        seconds before a restart, so that a broken host does not restart in a tight loop
#   --status=FILE     the file that gets "status restarts seconds" at the end
#   --dry-run         prints the command and runs nothing

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
restarts=50 pause=10 status=''
parse 'restarts= pause= status=' "$@"
need_number restarts pause
need_command
[[ ! $dry_run ]] || { show "${COMMAND[@]}"; exit 0; }

STOP='' SIGNALLED='' CHILD=''
# shellcheck disable=SC2329  # the traps call it
forward() {
  STOP=yes SIGNALLED=yes
  [[ ! $CHILD ]] || kill "-$1" "$CHILD" 2>/dev/null || true
}
trap 'forward TERM' TERM HUP
trap 'forward INT' INT
set -m # gives the command its own group, and SIGINT, which bash ignores in background processes

run_once() { # sets ENDED to the command's status
  "${COMMAND[@]}" &
  CHILD=$!
  [[ ! $STOP ]] || kill -TERM "$CHILD" 2>/dev/null || true # the signal came before there was a process to pass it on to
  while true; do
    SIGNALLED='' ENDED=0
    wait -f "$CHILD" || ENDED=$?
    [[ $SIGNALLED ]] || break # a signal to this script ends the wait, not the command
  done
  kill -KILL "-$CHILD" 2>/dev/null || true # data workers that are left would hold the TPU
  CHILD=''
}

for ((used = 0; ; used++)); do
  say "$(date -u +%FT%TZ) $HOSTNAME: start $used: $(quote "${COMMAND[@]}")"
  run_once
  say "$(date -u +%FT%TZ) $HOSTNAME: status $ENDED, $SECONDS s since the first start"
  if [[ $STOP ]] || ! may_restart "$ENDED"; then break; fi
  if ((used >= restarts)); then
    say "all --restarts=$restarts are used: the reason is above"
    break
  fi
  sleep "$pause" & # in the background, so that a signal does not wait for it
  wait $! || true
  [[ ! $STOP ]] || break
done
[[ ! $status ]] || echo "$ENDED $used $SECONDS" >"$status"
exit "$ENDED"

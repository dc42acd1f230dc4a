#!/usr/bin/env bash
# Runs a command and restarts it where that helps: after a preemption (status 75: saved), a crash (1), or a signal such as
# SIGKILL or SIGABRT. Never after 0, nor after an error that the user has to mend (2), nor after Ctrl-C (130).
#
#   launch/restart.sh --restarts=50 -- mtjudge train --config=.. --workdir=..
#
# SIGTERM goes to the command, which saves and ends; it is not restarted then. The exit status is the command's.
#
#   --restarts=50     how often
#   --pause=10        seconds before a restart: a broken host must not spin
#   --status=FILE     where to write, at the end, "status restarts seconds"
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
set -m # a group of its own for the command, and no ignored SIGINT, which bash gives to what runs in the background

run_once() { # into ENDED the command's status
  "${COMMAND[@]}" &
  CHILD=$!
  [[ ! $STOP ]] || kill -TERM "$CHILD" 2>/dev/null || true # it came before there was anything to pass it on to
  while true; do
    SIGNALLED='' ENDED=0
    wait -f "$CHILD" || ENDED=$?
    [[ $SIGNALLED ]] || break # a signal to this script ends the wait, not the command
  done
  kill -KILL "-$CHILD" 2>/dev/null || true # data workers that it left would hold the TPU
  CHILD=''
}

for ((used = 0; ; used++)); do
  say "$(date -u +%FT%TZ) $HOSTNAME: start $used: $(quote "${COMMAND[@]}")"
  run_once
  say "$(date -u +%FT%TZ) $HOSTNAME: status $ENDED, $SECONDS s since the first start"
  if [[ $STOP ]] || ! may_restart "$ENDED"; then break; fi
  if ((used >= restarts)); then
    say "no restart is left of --restarts=$restarts: the reason is above"
    break
  fi
  sleep "$pause" & # in the background: a signal need not wait for its end
  wait $! || true
  [[ ! $STOP ]] || break
done
[[ ! $status ]] || echo "$ENDED $used $SECONDS" >"$status"
exit "$ENDED"

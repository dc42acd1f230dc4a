#!/usr/bin/env bash
# Runs a command as n processes on this machine, which find each other like the hosts of a pod.
#
#   launch/local_multiprocess.sh -n 2 --devices=4 -- mtjudge train --config=configs/demo.py --workdir=runs/two
#
# Each process gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID and writes a log; process 0 also writes to the
# terminal. SIGTERM and Ctrl-C go to all processes. If one fails, the others have --grace seconds to end, then they get SIGKILL.
# Exit status: 2 if any process ends with it, else 130, else 75 (saved, restart), else the status of the first crash.
#
#   -n N, --processes=N   number of processes; required
#   --devices=4         fake CPU devices per process; sets JAX_PLATFORMS=cpu unless it is set
#   --restarts=0        most restarts of all processes, after 75, a crash (1) or a signal; never after 2 or 130
#   --heartbeat=10      adds --config.hosts.heartbeat_seconds=10 to the command
#   --grace=            seconds that the other processes have to end; default: the heartbeat (100) plus 20
#   --logs=DIR          writes DIR/0.log, DIR/1.log ..; default: a new folder in /tmp
#   --port=             port of the coordinator; default: a free one
#   --dry-run           prints the commands and runs nothing

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
processes='' devices='' restarts=0 heartbeat='' grace='' logs='' port=''
parse 'processes= devices= restarts= heartbeat= grace= logs= port=' "$@"
((!${#ARGS[@]})) || die "unexpected ${ARGS[*]}: the command goes after --"
need processes
grace=${grace:-$((${heartbeat:-100} + 20))}
need_number processes restarts grace ${devices:+devices} ${heartbeat:+heartbeat} ${port:+port}
((processes > 0)) || die "--processes=$processes: must be 1 or more"
need_command
[[ ! $heartbeat ]] || COMMAND+=("--config.hosts.heartbeat_seconds=$heartbeat")

free_port() { # below the ports that the kernel gives to connections; a port that refuses a connection is free
  local number
  while number=$((20000 + RANDOM % 12000)); do
    (exec 3<>"/dev/tcp/127.0.0.1/$number") 2>/dev/null || break
  done
  echo "$number"
}

command_of() { # command_of process port: sets WORDS
  local flags="${XLA_FLAGS:-}${XLA_FLAGS:+ }--xla_force_host_platform_device_count=$devices" platforms=${JAX_PLATFORMS-cpu}
  WORDS=(env "JAX_COORDINATOR_ADDRESS=127.0.0.1:$2" "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$1"
    ${devices:+"XLA_FLAGS=$flags" "JAX_PLATFORMS=$platforms"} "${COMMAND[@]}")
}

PIDS=() NUMBERS=() SAID=() STOP='' BAD='' KILLED='' TEE='' NEWS=''
# shellcheck disable=SC2329  # the traps call it
forward() {
  STOP=yes
  ((!${#PIDS[@]})) || kill "-$1" "${PIDS[@]}" 2>/dev/null || true
}
trap 'forward TERM; NEWS="SIGTERM: passed on; each process saves after its step"' TERM
trap 'forward TERM' HUP # the terminal may be gone, so print nothing
trap 'forward INT' INT

start_all() { # sets PIDS
  local process
  exec {terminal}> >(trap '' INT TERM; exec tee -a "$logs/0.log")
  TEE=$!
  for ((process = 0; process < processes; process++)); do
    command_of "$process" "$1"
    if ((process)); then
      "${WORDS[@]}" >>"$logs/$process.log" 2>&1 {terminal}>&- &
    else
      "${WORDS[@]}" >&"$terminal" 2>&1 {terminal}>&- &
    fi
    PIDS+=($!) NUMBERS[$!]=$process
  done
  exec {terminal}>&-
  [[ ! $STOP ]] || kill -TERM "${PIDS[@]}" 2>/dev/null || true # the signal came before there was a process to pass it on to
}

reap() { # removes ended processes from PIDS, adds their statuses to SAID and kills the processes that they left behind
  local pid status left=() bad=''
  for pid in "${PIDS[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      left+=("$pid")
    else
      status=0
      wait "$pid" || status=$?
      [[ $KILLED ]] || SAID+=("$status")
      ((!status)) || bad=${bad:-process ${NUMBERS[pid]} ended with status $status}
      kill -KILL "-$pid" 2>/dev/null || true
    fi
  done
  PIDS=("${left[@]}")
  [[ $bad ]] || return 0
  [[ $BAD$STOP$KILLED ]] || NEWS="$bad${left[*]:+; the others have up to $grace s to end}"
  BAD=yes
}

wait_all() { # sets STATUS, the status of all processes together. Polls 10 times a second: bash's wait -n misses some
  local end='' now never news
  SAID=() BAD='' KILLED=''
  exec {never}<> <(:)
  while ((${#PIDS[@]})); do
    { # hides bash's own messages about processes that a signal ended
      read -r -t 0.1 -u "$never" || true # sleeps without starting a process
      reap
    } 2>/dev/null
    news=$NEWS NEWS='' # in one command: a trap may set NEWS between two commands
    [[ ! $news ]] || say "$news"
    now=${EPOCHREALTIME/[.,]/} # microseconds
    if [[ ! $end && $STOP$BAD ]]; then end=$((now + grace * 1000000)); fi
    if [[ $end && ! $KILLED ]] && ((now >= end && ${#PIDS[@]})); then
      say "$(basename "$0"): ${#PIDS[@]} processes left after $grace s: sending SIGKILL"
      { kill -KILL "${PIDS[@]/#/-}" && wait "${PIDS[@]}"; } 2>/dev/null || true # hides bash's own messages about them
      KILLED=yes
    fi
  done
  exec {never}<&-
  STATUS=$(worst "${SAID[@]:-137}")
}

if [[ $dry_run ]]; then
  port=${port:-$(free_port)}
  for ((process = 0; process < processes; process++)); do
    command_of "$process" "$port"
    show "${WORDS[@]}"
  done
  exit 0
fi
logs=${logs:-$(mktemp -d "${TMPDIR:-/tmp}/mtjudge-processes.XXXXXX")}
mkdir -p "$logs"
say "$processes processes, logs in $logs"
set -m # gives each process its own group, and SIGINT, which bash ignores in background processes
for ((used = 0; ; used++)); do
  start_all "${port:-$(free_port)}"
  wait_all
  wait "$TEE" || true
  if [[ $STOP ]] || ((used >= restarts)) || ! may_restart "$STATUS"; then break; fi
  say "status $STATUS: restart $((used + 1)) of at most $restarts"
done
exit "$STATUS"

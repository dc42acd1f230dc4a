#!/usr/bin/env bash
# The tpu_*.sh scripts run this on each host by ssh. It prints facts as lines "host NAME ..".
#
#   host.sh setup --archive=FILE --commit=HASH --jax=V --python=V --extras=tpu [--lock=FILE]
#   host.sh start --run=train --restarts=50 [--commit=HASH] -- COMMAND ..
#   host.sh status --run=train
#   host.sh logs --run=train --lines=50 [--follow]
#   host.sh stop --grace=300 [--force]
#   host.sh model --model=ID --to=gs://.. [--revision=] [--scratch=]
#
# Everything is in ~/mtjudge: code/, commit (its hash), venv/, freeze.txt, pid (of the run), runs/NAME/{log,status}.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
base=$HOME/mtjudge lockfile=${TPU_LOCKFILE:-/tmp/libtpu_lockfile}
archive='' commit='' jax='' python='' extras='' lock='' run=train restarts=0 lines=50 follow='' grace=300 force='' model='' to='' revision=''
scratch=$base

fact() { echo "host $HOSTNAME $*"; }

refuse() { # an error of one host among many, with its name
  echo "error: $HOSTNAME: $*" >&2
  exit 2
}

alive() { # whether a run is alive; another process may have its number by now
  [[ -s $base/pid ]] && grep -qsa restart.sh "/proc/$(<"$base/pid")/cmdline"
}

holders() { # "pid command" of processes that hold a TPU
  { sudo -n lsof -w -F pc /dev/accel* /dev/vfio/* 2>/dev/null || true; } | sed -n '/^p/{s/^p//;N;s/\nc/ /;p;}' | sort -u
}

digest() { sha256sum "$@" | cut -c1-12; }

setup() {
  ! alive || refuse "a run is alive and its code must not change: run launch/tpu_stop.sh first"
  rm -rf "$base/code"
  mv "$base/code.new" "$base/code"
  echo "$commit" >"$base/commit"
  cd "$base"
  export PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || python3 -m pip install --user --quiet uv
  local stamp
  stamp="$python $jax $extras $(digest code/pyproject.toml) $([[ ! $lock ]] || digest "$HOME/$lock")"
  if [[ $stamp != "$(cat stamp 2>/dev/null)" ]]; then
    rm -rf stamp venv
    uv venv --quiet --python "$python" venv || exit 1 # not uv's own 2, which would mean an error that the user must fix
    uv pip install --quiet --python venv/bin/python ${lock:+--constraint "$HOME/$lock"} -e "./code[$extras]" "jax==$jax" || exit 1
    uv pip freeze --python venv/bin/python --exclude-editable >freeze.txt
    echo "$stamp" >stamp
  fi
  local full
  full=$(venv/bin/python -c 'import platform; print(platform.python_version())')
  fact "code=$(digest "$HOME/$archive") packages=$(digest freeze.txt) python=$full" \
    "$(sed -nE 's/^(jax|libtpu)==(.*)/\1=\2/p' freeze.txt | sort | tr '\n' ' ' | sed 's/ $//')"
}

start() {
  local dir=$base/runs/$run held have
  need_command
  [[ -x $base/venv/bin/python ]] || refuse "not set up: run launch/tpu_setup.sh first"
  ! alive || refuse "a run is already alive: run launch/tpu_stop.sh first"
  have=$(cat "$base/commit" 2>/dev/null) || true
  [[ ! $commit || $commit == "$have" ]] ||
    refuse "this host has commit ${have:0:12}, not ${commit:0:12}: run launch/tpu_setup.sh again, or give --as-set-up"
  held=$(holders)
  [[ ! $held ]] || refuse "the TPU is held by ${held//$'\n'/, }: end it with launch/tpu_stop.sh --force"
  rm -f "$lockfile" 2>/dev/null || sudo -n rm -f "$lockfile" # no process holds the TPU, so a dead one left the file
  mkdir -p "$dir"
  rm -f "$dir/status"
  cd "$base/code"
  PATH=$base/venv/bin:$PATH PYTHONUNBUFFERED=1 setsid nohup bash launch/restart.sh "--restarts=$restarts" \
    "--status=$dir/status" -- "${COMMAND[@]}" >>"$dir/log" 2>&1 </dev/null &
  echo "$run" >"$base/run"
  echo $! >"$base/pid"
  sleep 1
  alive || [[ -e $dir/status ]] || refuse "did not start: $(tail -n 1 "$dir/log")"
  fact "started run=$run pid=$(<"$base/pid") log=$dir/log"
}

status() {
  local dir=$base/runs/$run ended used seconds last number='Z [^ ]+: start [0-9]+: '
  last=$(tail -n 9 "$dir/log" 2>/dev/null | tr '\r' '\n' | grep -avE '^ *$|Z .*: (start|status) [0-9]' | tail -n 1 | cut -c1-120) || true
  if [[ -s $dir/status ]]; then
    read -r ended used seconds <"$dir/status"
    fact "ended status=$ended restarts=$used seconds=$seconds $last"
  elif alive && [[ $run == "$(<"$base/run")" ]]; then
    used=$(grep -aoE "$number" "$dir/log" | tail -n 1 | sed -E 's/.* ([0-9]+): $/\1/') || true # the log also has earlier runs
    fact "running restarts=${used:-0} $last"
  elif [[ -e $dir/log ]]; then
    fact "ended status=137 restarts=? seconds=? killed without a message, or the host was rebooted: $last"
  else
    fact "ended status=2 restarts=0 seconds=0 no run $run was started here"
  fi
}

logs() {
  [[ -e $base/runs/$run/log ]] || refuse "no run $run: see ~/mtjudge/runs"
  tail -n "$lines" ${follow:+-F} "$base/runs/$run/log" | sed -u "s/^/$HOSTNAME: /"
}

stop() {
  local pid='' held waited=0
  if alive; then
    pid=$(<"$base/pid")
    kill -TERM "$pid"
    while alive && ((waited < grace * 10)); do
      sleep 0.1
      waited=$((waited + 1))
    done
    if alive; then
      pkill -KILL -s "$pid" || true # the session: also the processes that the command started
      fact "killed: not saved within $grace s"
    else
      fact "stopped after $((waited / 10)) s, status=$(cut -d' ' -f1 "$base/runs/$(<"$base/run")/status" 2>/dev/null || echo unknown)"
    fi
  else
    fact "no run was alive"
  fi
  held=$(holders)
  if [[ $held && $force ]]; then
    cut -d' ' -f1 <<<"$held" | xargs sudo -n kill -KILL
    say "$HOSTNAME: ended ${held//$'\n'/, }"
  elif [[ $held ]]; then
    refuse "the TPU is still held by ${held//$'\n'/, }: --force ends it"
  fi
  rm -f "$lockfile" 2>/dev/null || sudo -n rm -f "$lockfile"
}

model() {
  local folder=$scratch/${model##*/}
  [[ -x $base/venv/bin/python ]] || refuse "not set up: run launch/tpu_setup.sh first"
  PATH=$base/venv/bin:$PATH
  HF_HUB_OFFLINE=0 hf download "$model" ${revision:+--revision "$revision"} --local-dir "$folder"
  rm -rf "$folder/.cache"
  gcloud storage rsync --recursive "$folder" "$to"
  rm -rf "$folder"
  fact "$model is in $to"
}

what=${1:-}
(($#)) && shift
[[ $what =~ ^(setup|start|status|logs|stop|model)$ ]] || { usage && exit 2; }
parse 'archive= commit= jax= python= extras= lock= run= restarts= lines= follow grace= force model= to= revision= scratch=' "$@"
"$what"

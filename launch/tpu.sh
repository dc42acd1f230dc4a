# shellcheck shell=bash disable=SC2034
# Functions that the scripts for TPU VMs share and source. The scripts use the variables that look unused here.

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
internal_ip='' iap='' COUNT='' FACTS=() STATE='' TYPE_THERE='' COMMIT=''
jax='' lock='' python=3.12 extras=tpu,gcs committed='' # flags of tpu_setup.sh, and of tpu_keep.sh, which calls it
TPU_FLAGS='zone= project= internal-ip iap'
QUEUE=(gcloud compute tpus queued-resources)

reach() { # sets WHERE, and how ssh reaches the hosts
  where
  [[ -z $internal_ip || -z $iap ]] || die "--internal-ip and --iap: give only one"
  need_tools gcloud
  SSH=(gcloud ${iap:+alpha} compute tpus tpu-vm)
  REACH=(${internal_ip:+--internal-ip} ${iap:+--tunnel-through-iap})
}

state() { # state answer: sets STATE, the state of the request, empty if there is none, and TYPE_THERE, its accelerator type
  local line
  ask line "$1" "${QUEUE[@]}" list "${WHERE[@]}" "--filter=name~/$NAME\$" \
    '--format=value(state.state,tpu.nodeSpec[0].node.acceleratorType.basename())'
  read -r STATE TYPE_THERE <<<"$line" || true
}

absent() { # after a failed call to gcloud: ends with the reason if the slice does not exist
  state ''
  [[ $STATE ]] || die "$NAME is not in $zone: run launch/tpu_create.sh $NAME ${WHERE[*]} --topology=.. first"
  [[ $STATE == ACTIVE ]] || { say "error: $NAME is $STATE: launch/tpu_create.sh waits for it or requests it again"; exit 75; }
}

host() { # host what flag ..: the line that runs host.sh on a host; it ends with 3, which host.sh never does, before the set-up
  printf '%s' "[ -e mtjudge/code ] || exit 3; $(quote bash mtjudge/code/launch/host.sh "$@")"
}

set_up() { # set_up status: ends if a host is not set up
  (($1 != 3)) || die "not set up: run launch/tpu_setup.sh $NAME ${WHERE[*]} --jax=.. first"
}

on() { # on worker command line: the words of an ssh command that runs the line on the worker, or on all of the workers
  local worker=$1
  shift
  printf '%s\0' "${SSH[@]}" ssh "$NAME" "${WHERE[@]}" "--worker=$worker" "${REACH[@]}" "--command=$*"
}

remote() { # remote worker command line
  local words status=0
  mapfile -d '' words < <(on "$@")
  run "${words[@]}" || status=$?
  set_up "$status"
  ((status != 1)) || absent # gcloud's own failures have status 1
  return "$status"
}

ask_hosts() { # ask_hosts worker command line: sets FACTS, the lines "host NAME .." that the hosts print
  local words output='' status=0
  mapfile -d '' words < <(on "$@")
  if [[ $dry_run ]]; then
    show "${words[@]}"
  else
    output=$("${words[@]}") || status=$?
  fi
  set_up "$status"
  mapfile -t FACTS < <(grep '^host ' <<<"$output" | sort -u)
  return "$status"
}

count_hosts() { # sets COUNT, the number of hosts of NAME
  local words=(gcloud compute tpus tpu-vm describe "$NAME" "${WHERE[@]}" '--format=value(networkEndpoints.len())')
  if [[ $dry_run ]]; then
    show "${words[@]}"
  else
    COUNT=$("${words[@]}") || { absent && exit 1; }
  fi
}

need_commit() { # sets COMMIT, the last commit; refuses uncommitted changes without --committed
  local changed
  COMMIT=$(git -C "$ROOT" rev-parse --verify HEAD 2>/dev/null) || die "$ROOT is not a git repository with a commit, which the hosts need"
  changed=$(git -C "$ROOT" status --porcelain)
  [[ -z $changed || $committed ]] ||
    die "uncommitted changes ($(wc -l <<<"$changed"), first $(sed -n '1s/^...//p' <<<"$changed")): hosts get the last commit; commit" \
      "them, or leave them out with --committed"
}

need_packages() { # --jax must be a version, and that of an existing lock; a new lock must be writable
  local locked
  [[ $jax =~ ^[0-9]+(\.[0-9]+)+$ ]] || die "--jax=$jax: must be one version, such as 0.10.2"
  [[ $python =~ ^3\.[0-9]+$ ]] || die "--python=$python: must be a version such as 3.12"
  if [[ -e $lock ]]; then
    locked=$(sed -n 's/^jax==//p' "$lock")
    [[ $jax == "${locked:-$jax}" ]] || die "--jax=$jax: $lock has jax $locked: give --jax=$locked, or a new file as --lock"
  elif [[ $lock && ! $dry_run ]]; then
    { mkdir -p "$(dirname "$lock")" && touch "$lock.part" && rm "$lock.part"; } 2>/dev/null || die "--lock=$lock: cannot be written"
  fi
}

# shellcheck shell=bash disable=SC2034
# What the scripts share that talk to TPU VMs; they source it. What is unused here they use.

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
internal_ip='' iap='' COUNT='' FACTS=() STATE='' TYPE_THERE='' COMMIT=''
jax='' lock='' python=3.12 extras=tpu,gcs committed='' # of tpu_setup.sh, and of tpu_keep.sh which calls it
TPU_FLAGS='zone= project= internal-ip iap'
QUEUE=(gcloud compute tpus queued-resources)

reach() { # where, and the ways there
  where
  [[ -z $internal_ip || -z $iap ]] || die "--internal-ip and --iap: one of the two"
  need_tools gcloud
  SSH=(gcloud ${iap:+alpha} compute tpus tpu-vm)
  REACH=(${internal_ip:+--internal-ip} ${iap:+--tunnel-through-iap})
}

state() { # state answer: into STATE that of the request, empty where there is none, and the accelerator type that it has
  local line
  ask line "$1" "${QUEUE[@]}" list "${WHERE[@]}" "--filter=name~/$NAME\$" \
    '--format=value(state.state,tpu.nodeSpec[0].node.acceleratorType.basename())'
  read -r STATE TYPE_THERE <<<"$line" || true
}

absent() { # after a call to gcloud that failed: where the slice is not there, it says so and ends
  state ''
  [[ $STATE ]] || die "$NAME is not in $zone: launch/tpu_create.sh $NAME ${WHERE[*]} --topology=.. first"
  [[ $STATE == ACTIVE ]] || { say "error: $NAME is $STATE: launch/tpu_create.sh waits for it, or asks anew"; exit 75; }
}

host() { # host what flag ..: the line with which a host runs host.sh, or ends with 3, which host.sh does not, where there is none
  printf '%s' "[ -e mtjudge/code ] || exit 3; $(quote bash mtjudge/code/launch/host.sh "$@")"
}

set_up() { # set_up status: ends where a host said that it is not
  (($1 != 3)) || die "not set up: launch/tpu_setup.sh $NAME ${WHERE[*]} --jax=.. first"
}

on() { # on worker command line: the words of a ssh command that runs the line on the worker, or on all
  local worker=$1
  shift
  printf '%s\0' "${SSH[@]}" ssh "$NAME" "${WHERE[@]}" "--worker=$worker" "${REACH[@]}" "--command=$*"
}

remote() { # remote worker command line
  local words status=0
  mapfile -d '' words < <(on "$@")
  run "${words[@]}" || status=$?
  set_up "$status"
  ((status != 1)) || absent # gcloud's own failures are 1
  return "$status"
}

ask_hosts() { # ask_hosts worker command line: into FACTS the lines "host NAME .." that they print
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

count_hosts() { # into COUNT the number of hosts that NAME has
  local words=(gcloud compute tpus tpu-vm describe "$NAME" "${WHERE[@]}" '--format=value(networkEndpoints.len())')
  if [[ $dry_run ]]; then
    show "${words[@]}"
  else
    COUNT=$("${words[@]}") || { absent && exit 1; }
  fi
}

need_commit() { # into COMMIT the last commit; refuses what is not in it, unless --committed
  local changed
  COMMIT=$(git -C "$ROOT" rev-parse --verify HEAD 2>/dev/null) || die "$ROOT is no git repository with a commit: the hosts get a commit"
  changed=$(git -C "$ROOT" status --porcelain)
  [[ -z $changed || $committed ]] ||
    die "uncommitted changes ($(wc -l <<<"$changed"), first $(sed -n '1s/^...//p' <<<"$changed")): hosts get the last commit; commit" \
      "them, or leave them out with --committed"
}

need_packages() { # --jax is a version, that of the lock where there is one; a lock that is not there yet can be written
  local locked
  [[ $jax =~ ^[0-9]+(\.[0-9]+)+$ ]] || die "--jax=$jax: one version, such as 0.10.2"
  [[ $python =~ ^3\.[0-9]+$ ]] || die "--python=$python: such as 3.12"
  if [[ -e $lock ]]; then
    locked=$(sed -n 's/^jax==//p' "$lock")
    [[ $jax == "${locked:-$jax}" ]] || die "--jax=$jax: $lock has jax $locked: --jax=$locked, or a new file as --lock"
  elif [[ $lock && ! $dry_run ]]; then
    { mkdir -p "$(dirname "$lock")" && touch "$lock.part" && rm "$lock.part"; } 2>/dev/null || die "--lock=$lock: cannot be written there"
  fi
}

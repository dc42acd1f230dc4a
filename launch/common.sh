# shellcheck shell=bash disable=SC2034
# Functions that the scripts of this folder share and source. Needs bash 5.1 or newer for wait -n -p. The scripts use the
# variables that look unused here.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 501)); then
  echo "error: this is bash $BASH_VERSION, bash 5.1 or newer is needed (on a Mac: brew install bash)" >&2
  exit 2
fi

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$HERE")
dry_run='' zone='' project='' image=''

# One generation of TPUs per line: its name in --topology, the beginning of its name in Google Cloud, that name's count per chip,
# the runtime of its VMs (-: only GKE has it, the Cloud TPU API does not), its name and machine in GKE, and its shapes. GKE
# machines of these shapes have 4 chips. `mtjudge plan` knows the same slices.
KINDS='
v4  v4        2 tpu-ubuntu2204-base tpu-v4-podslice      ct4p-hightpu-4t  2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8
v5e v5litepod 1 v2-alpha-tpuv5-lite tpu-v5-lite-podslice ct5lp-hightpu-4t 2x2 2x4 4x4 4x8 8x8 8x16 16x16
v5p v5p       2 v2-alpha-tpuv5      tpu-v5p-slice        ct5p-hightpu-4t  2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 16x16x24
v6e v6e       1 v2-alpha-tpuv6e     tpu-v6e-slice        ct6e-standard-4t 2x2 2x4 4x4 4x8 8x8 8x16 16x16
tpu7x tpu7x   2 -                   tpu7x                tpu7x-standard-4t 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16
'

say() { printf '%s\n' "$*" >&2; }

die() { # an error that the user must fix: one line, exit status 2
  printf 'error: %s\n' "$*" >&2
  exit 2
}

need_tools() { # need_tools tool ..: each must be on PATH; checked before anything is written, and not for --dry-run
  local tool from
  for tool; do
    case $tool in
    gcloud) from=https://cloud.google.com/sdk/docs/install ;;
    kubectl) from='gcloud components install kubectl gke-gcloud-auth-plugin' ;;
    xpk) from='pip install xpk' ;;
    sky) from='pip install "skypilot[gcp]"' ;;
    *) from='install it' ;;
    esac
    [[ $dry_run ]] || command -v "$tool" >/dev/null || die "$tool is not on PATH: $from"
  done
}

usage() { sed -n '2,/^[^#]/ { s/^# \{0,1\}//p; }' "$0"; } # the comment at the head of a script is its help text

parse() { # parse "name= switch .." "$@": each flag sets a variable (a-b sets a_b); other words go to ARGS, those after -- to COMMAND
  local spec=" $1 dry-run help " word name value
  shift
  ARGS=() COMMAND=()
  while (($#)); do
    word=$1 name=${1#--}
    shift
    case $word in
    --) COMMAND=("$@") && break ;;
    -h | --help) usage && exit 0 ;;
    -n)
      [[ $spec == *" processes= "* ]] || die "unknown flag -n: see --help"
      name=processes
      ;;
    --*=*) name=${name%%=*} value=${word#*=} ;;
    --*) value=yes ;;
    -*) die "unknown flag $word: see --help" ;;
    *) ARGS+=("$word") && continue ;;
    esac
    if [[ $spec == *" $name= "* ]]; then
      if [[ $word != *=* ]]; then
        (($#)) || die "--$name needs a value: --$name=.."
        value=$1 && shift
      fi
      [[ -n $value ]] || die "--$name= is empty"
    elif [[ $spec != *" $name "* ]]; then
      [[ " ${ARGS[*]} " != *" mtjudge "* ]] || die "unknown flag --$name: put -- before the command, -- mtjudge .."
      die "unknown flag --$name: see --help"
    elif [[ $word == *=* ]]; then
      die "--$name takes no value"
    fi
    printf -v "${name//-/_}" %s "$value"
  done
}

need() { # need flag ..: each must have a value
  local flag variable
  for flag; do
    variable=${flag//-/_}
    [[ -n ${!variable} ]] || die "--$flag=.. is missing: see --help"
  done
}

name_from_args() { # sets NAME, the only positional argument; it becomes part of host names
  ((${#ARGS[@]} == 1)) || die "one name is needed, ${#ARGS[@]} are given${ARGS[*]:+ (${ARGS[*]})}: see --help$(
    [[ " ${ARGS[*]} " != *" mtjudge "* ]] || echo "; put -- before the command, -- mtjudge .."
  )"
  NAME=${ARGS[0]}
  [[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ && ${#NAME} -le 40 ]] ||
    die "name $NAME: use at most 40 of a-z, 0-9 and -, with a letter first and no - last"
}

need_command() { # there must be a command after --
  ((${#COMMAND[@]})) || die "nothing to run: end the line with -- mtjudge train --config=.. --workdir=gs://.."
}

need_number() { # need_number flag ..
  local flag variable
  for flag; do
    variable=${flag//-/_}
    [[ ${!variable} =~ ^[0-9]+$ ]] || die "--$flag=${!variable}: must be a whole number, 0 or more"
  done
}

need_image() {
  local part='[a-z0-9][a-z0-9._-]*'
  [[ $image =~ ^$part(:[0-9]+)?(/$part)+(:[A-Za-z0-9_.-]+)?(@sha256:[0-9a-f]{64})?$ ]] ||
    die "--image=$image: must be an image such as registry/repository/mtjudge:1"
}

need_bucket() { # need_bucket flag: its value must be gs://bucket/..
  [[ ${!1} =~ ^gs://[a-z0-9][-a-z0-9_.]+(/.*)?$ ]] || die "--$1=${!1}: must be a path in a bucket, gs://bucket/path"
}

slice() { # slice v5p:4x4x4, or Google's v5p-128 (cores), v6e-64, v5litepod-16, v5e-16 (chips): sets SLICE TYPE SHAPE CHIPS HOSTS RUNTIME GKE MACHINE
  local kind prefix each shapes known=''
  while read -r kind prefix each RUNTIME GKE MACHINE shapes; do
    for SHAPE in $shapes; do
      CHIPS=$((${SHAPE//x/*})) SLICE=$kind:$SHAPE
      TYPE=$prefix-$((CHIPS * each)) HOSTS=$((CHIPS / 4))
      known+=" $SLICE"
      [[ $1 != "$SLICE" && $1 != "$TYPE" && $1 != "$kind-$((CHIPS * each))" ]] || return 0
    done
  done <<<"${KINDS:1:-1}"
  die "--topology=$1 is not known; known:$known"
}

need_cloud_tpu() { # the Cloud TPU API must offer the slice
  [[ $RUNTIME != - ]] ||
    die "--topology=$SLICE: the Cloud TPU API has no ${SLICE%%:*}, but GKE has: use launch/xpk_run.sh or launch/jobset_run.sh"
}

quote() { # prints the arguments as one line that a shell reads back unchanged
  local word line=''
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+=" $word"
  done
  printf '%s' "${line# }"
}

show() { printf '%s\n' "$(quote "$@")"; }

run() { # runs a command, or prints it with --dry-run
  if [[ $dry_run ]]; then show "$@"; else "$@"; fi
}

ask() { # ask variable answer command..: sets the variable to what the command prints, or to the answer with --dry-run
  local into=$1 answer=$2
  shift 2
  if [[ $dry_run ]]; then show "$@"; else answer=$("$@") || exit 1; fi
  printf -v "$into" %s "$answer"
}

may_restart() { # may_restart status: after a save on request (75), a crash (1) or a signal; not after an error that the user must fix
  case $1 in
  75 | 1) true ;;
  130) false ;;
  *) (($1 > 128)) ;;
  esac
}

# worst status..: the exit status of several processes together. Errors that a restart cannot fix come first. Then 75 (saved): the
# other processes crash only because they lost a peer. Then the first crash.
worst() {
  local known status crash=0
  for known in 2 130 75; do
    for status; do
      [[ $status != "$known" ]] || { echo "$known" && return; }
    done
  done
  for status; do
    ((crash || !status)) || crash=$status
  done
  echo "$crash"
}

where() { # sets WHERE, the flags of the zone and project of NAME; checks them
  need zone
  [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || die "--zone=$zone: must be a zone such as us-east5-a"
  WHERE=("--zone=$zone" ${project:+"--project=$project"})
}

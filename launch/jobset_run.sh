#!/usr/bin/env bash
# Starts a run on a GKE cluster with a TPU node pool and JobSet installed: fills in launch/jobset.yaml and creates it.
#
#   launch/jobset_run.sh NAME --topology=v5p:4x4x4 --image=REGISTRY/mtjudge:1 --service-account=judge \
#     -- mtjudge train --config=.. --workdir=gs://bucket/run
#
# 75, crashes and lost nodes restart all hosts; 2 fails the JobSet at once.
#
#   --topology=V5P:4X4X4    the slice, as in `mtjudge plan`
#   --image=                made with launch/Dockerfile and pushed
#   --service-account=      of Kubernetes, which may read and write your bucket; default: default
#   --restarts=50           how often
#   --grace=600             seconds between SIGTERM and SIGKILL: more than a save takes
#   --spot                  on Spot nodes
#   --namespace=            of Kubernetes
#   --out=NAME.jobset.yaml  where the filled file is written; with --dry-run too
#   --dry-run               writes that file, prints the command and does not run it

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
topology='' image='' service_account=default restarts=50 grace=600 spot='' namespace='' out=''
parse 'topology= image= service-account= restarts= grace= spot namespace= out=' "$@"
name_from_args
need topology image
need_number restarts grace
need_command
slice "$topology"
need_image
[[ $service_account =~ ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ ]] || die "--service-account=$service_account: a name in Kubernetes, no e-mail address"
need_tools kubectl

list='' # the command as a JSON list; Kubernetes expands $(..) in it, $$ stands for $
for word in "${COMMAND[@]}"; do
  [[ $word != *[[:cntrl:]]* ]] || die "a line break in the command: $(quote "$word")"
  word=${word//\\/\\\\}
  word=${word//\"/\\\"}
  list+=", \"${word//\$/\$\$}\""
done
text=$(<"$HERE/jobset.yaml")
[[ ! $spot ]] || text=${text//'#spot '/}
fill() { text=${text//"\${$1}"/"$2"}; }
fill NAME "$NAME"
fill RESTARTS "$restarts"
fill HOSTS "$HOSTS"
fill GRACE "$grace"
fill SERVICE_ACCOUNT "$service_account"
fill GKE "$GKE"
fill SHAPE "$SHAPE"
fill IMAGE "$image"
fill ARGS "[${list:2}]"
out=${out:-$NAME.jobset.yaml}
sed '/^#/d' <<<"$text" >"$out"
say "$NAME: $SLICE, $HOSTS hosts; $out is written"
run kubectl create "--filename=$out" ${namespace:+"--namespace=$namespace"}

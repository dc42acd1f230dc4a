#!/usr/bin/env bash
# Starts a run on a GKE cluster that has a TPU node pool and JobSet: fills in launch/jobset.yaml and creates the JobSet.
#
#   launch/jobset_run.sh NAME --topology=v5p:4x4x4 --image=REGISTRY/mtjudge:1 --service-account=judge \
#     -- mtjudge train --config=.. --workdir=gs://bucket/run
#
# Status 75, crashes and lost nodes restart all hosts; status 2 fails the JobSet at once.
#
#   --topology=V5P:4X4X4    the slice, as in `mtjudge plan`
#   --image=                an image built from launch/Dockerfile and pushed
#   --service-account=      Kubernetes service account that may read and write your bucket; default: default
#   --restarts=50           most restarts
#   --grace=600             seconds between SIGTERM and SIGKILL; must exceed the time of a save
#   --spot                  runs on Spot nodes
#   --namespace=            Kubernetes namespace
#   --out=NAME.jobset.yaml  the filled-in file; also written with --dry-run
#   --dry-run               writes that file and prints the command without running it

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
[[ $service_account =~ ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ ]] || die "--service-account=$service_account: must be a name in Kubernetes, not an e-mail address"
need_tools kubectl

list='' # the command as a JSON list; Kubernetes expands $(..) in it, $$ stands for $
for word in "${COMMAND[@]}"; do
  [[ $word != *[[:cntrl:]]* ]] || die "the command has a line break: $(quote "$word")"
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

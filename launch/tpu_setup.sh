#!/usr/bin/env bash
# Installs the same code and packages on every host of a slice and compares them: it fails if one host differs.
#
#   launch/tpu_setup.sh NAME --zone=us-east5-a --jax=0.10.2 --lock=runs/pod.lock
#
# Sends the last commit of this repository. It may be called again at any time and does not reinstall unchanged packages.
#
#   --jax=0.10.2     the version of jax; libtpu follows from it
#   --lock=FILE      the versions of all packages: read if the file exists, else written. Keep it: a slice that replaces
#                    this one weeks later gets the same packages. git ignores runs/, so keep a copy elsewhere
#   --python=3.12    Python of the hosts' virtual environment, made by uv
#   --extras=tpu,gcs extras of this package
#   --committed      ignores uncommitted changes; without it they are refused
#   --zone= --project= --internal-ip --iap     where NAME is and how ssh reaches it (--iap: by Google's tunnel)
#   --dry-run        prints the commands and runs nothing

set -euo pipefail
# shellcheck source=launch/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
parse "$TPU_FLAGS jax= lock= python= extras= committed" "$@"
name_from_args
need jax
reach
need_packages
need_commit
count_hosts

archive=${TMPDIR:-/tmp}/mtjudge-code-${COMMIT:0:12}.tgz
files=("$archive")
[[ ! -e $lock ]] || files+=("$lock")
run git -C "$ROOT" archive --format=tar.gz "--output=$archive" "$COMMIT"
run "${SSH[@]}" scp "${files[@]}" "$NAME:" "${WHERE[@]}" --worker=all "${REACH[@]}"

unpack="rm -rf mtjudge/code.new && mkdir -p mtjudge/code.new && tar -xzf ${archive##*/} -C mtjudge/code.new"
setup=$(quote bash mtjudge/code.new/launch/host.sh setup "--archive=${archive##*/}" "--jax=$jax" "--python=$python" \
  "--extras=$extras" "--commit=$COMMIT" ${files[1]:+"--lock=${lock##*/}"})
failed=0
ask_hosts all "$unpack && $setup" || failed=$?
((!failed)) || { say "error: the set-up failed on a host, see above"; exit $((failed == 2 ? 2 : 1)); }
[[ ! $dry_run ]] || { [[ -z $lock || -e $lock ]] || remote 0 'cat mtjudge/freeze.txt'; exit 0; }

printf '%s\n' "${FACTS[@]}"
((${#FACTS[@]} == COUNT)) || { say "error: ${#FACTS[@]} of $COUNT hosts answered: run it again"; exit 1; }
same=$(printf '%s\n' "${FACTS[@]}" | cut -d' ' -f3- | sort | uniq -c | sort -rn)
if (($(wc -l <<<"$same") > 1)); then
  usual=$(sed -n '1s/^ *[0-9]* //p' <<<"$same")
  say "error: hosts differ from the $(sed -n '1s/^ *\([0-9]*\) .*/\1/p' <<<"$same") that have $usual:"
  printf '%s\n' "${FACTS[@]}" | grep -vF " $usual" | sed 's/^host /  /' >&2
  exit 1
fi
sum=$(sha256sum "$archive" | cut -c1-12)
[[ " ${FACTS[0]} " == *" code=$sum "* ]] || { say "error: the hosts have other code than $archive (code=$sum)"; exit 1; }
if [[ $lock && ! -e $lock ]]; then
  if ! { remote 0 'cat mtjudge/freeze.txt' >"$lock.part" && mv "$lock.part" "$lock"; }; then
    rm -f "$lock.part"
    say "error: $lock is not written, see above: run it again"
    exit 1
  fi
  say "$lock: written, the packages of all hosts"
fi
say "$NAME: $COUNT hosts have the same code and packages; next: launch/tpu_run.sh $NAME --zone=$zone -- mtjudge train .."

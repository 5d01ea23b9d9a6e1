#!/usr/bin/env bash
# A federation's server: its folder is made if there is none, then the study is run, and again after a crash.
#
#   STUDY=study.toml HOST=fed.example.org deploy/server.sh FOLDER
#
# Needed the first time only: STUDY, HOST, PORT (9092), DATA_ROOT (none: the study's twins).
# INVITATION (FOLDER/invitation)  where the bundle for hospitals is written
# KEYS, SITES                     for a trial: wait for KEYS/NAME/node.pub of all these names, and admit them unseen.
#                                 Without them admit every site yourself, after a telephone call: medfed federation add
# Exit status: that of `medfed federation start`. After 3 (too few sites) and when it was killed it is started again.
set -euo pipefail
folder=${1:?usage: server.sh FOLDER}
. "$(dirname "${BASH_SOURCE[0]}")/keep.sh"

if [ ! -e "$folder/federation.toml" ]; then
  run medfed federation init "$folder" --study "${STUDY:?}" --host "${HOST:?}" --port "${PORT:-9092}" \
    ${DATA_ROOT:+--data-root "$DATA_ROOT"}
fi
invitation=${INVITATION:-$folder/invitation}
if [ ! -e "$invitation/invitation.toml" ]; then run medfed federation invite "$folder" --out "$invitation"; fi
for site in ${SITES:-}; do
  if [ ! -e "$folder/sites/$site.pub" ]; then
    wait_for "${KEYS:?}/$site/node.pub"
    run medfed federation add "$folder" "$site" "$KEYS/$site/node.pub"
  fi
done
keep "0 1 130 143" medfed federation start "$folder"

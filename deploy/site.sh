#!/usr/bin/env bash
# A hospital: its folder is made if there is none, checked, and the federation joined, again after failures.
#
#   NAME=berlin DATA_ROOT=/data INVITATION=invitation deploy/site.sh FOLDER
#
# Needed the first time only: NAME, DATA_ROOT, INVITATION (it is waited for), CA_FINGERPRINT (as heard by telephone),
# MAY_LEAVE ("encoders"; several parts with blanks between), PUBLIC_ROOT.
# KEY_OUT  for a trial: a folder that node.pub is copied into
# ONCE     1: leave when a run is over
# Exit status: that of `medfed site join`; it is joined again after every status but 0, 130 and 143.
set -euo pipefail
folder=${1:?usage: site.sh FOLDER}
. "$(dirname "${BASH_SOURCE[0]}")/keep.sh"

if [ ! -e "$folder/site.toml" ]; then
  wait_for "${INVITATION:?}/invitation.toml"
  parts=()
  for part in ${MAY_LEAVE:-encoders}; do parts+=(--may-leave "$part"); done
  run medfed site init "$folder" --name "${NAME:?}" --data-root "${DATA_ROOT:?}" --invitation "$INVITATION" \
    "${parts[@]}" ${CA_FINGERPRINT:+--ca-fingerprint "$CA_FINGERPRINT"} ${PUBLIC_ROOT:+--public-root "$PUBLIC_ROOT"}
fi
if [ -n "${KEY_OUT:-}" ]; then
  cp "$folder/node.pub" "$KEY_OUT/.node.partial"
  mv "$KEY_OUT/.node.partial" "$KEY_OUT/node.pub"
fi
keep "0 130 143" medfed site doctor "$folder" --offline
keep "0 130 143" medfed site join "$folder" ${ONCE:+--once}

#!/usr/bin/env bash
# A federation of three hospitals on this machine: four processes, TLS, node keys, synthetic patients.
#
#   deploy/trial.sh [FOLDER]        a new folder; default: federation-trial
#
# STUDY (studies/scaffold-3sites.toml), PORT (a free one). It prints where the run ended, what left the hospitals, and
# whether the final weights are those of the same study in one process, bit for bit; exit status 1 if they are not.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${1:-federation-trial}
study=${STUDY:-$here/../studies/scaffold-3sites.toml}
sites="site-0 site-1 site-2"
if [ -e "$root" ]; then
  echo "$root is there already; name a new folder" >&2
  exit 1
fi
for site in $sites; do mkdir -p "$root/keys/$site"; done
root=$(cd "$root" && pwd)
port=${PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}

export WAIT_SECONDS=900 # for an invitation or a key that never comes
parties=()
end_all() { for pid in "${parties[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done; }
trap end_all EXIT

echo "1. synthetic patients of every hospital and of the server: $root/data"
medfed data synth --study "$study" --out "$root/data" >"$root/synth.log"

echo "2. one server and three hospitals; their logs: $root/*.log"
STUDY=$study HOST=127.0.0.1 PORT=$port DATA_ROOT=$root/data/server KEYS=$root/keys SITES=$sites \
  "$here/server.sh" "$root/server" >"$root/server.log" 2>&1 &
server=$!
parties+=("$server")
for site in $sites; do
  NAME=$site DATA_ROOT=$root/data/$site INVITATION=$root/server/invitation KEY_OUT=$root/keys/$site ONCE=1 \
    MAY_LEAVE="encoders heads state" "$here/site.sh" "$root/$site" >"$root/$site.log" 2>&1 &
  parties+=("$!")
done
if ! wait "$server"; then
  tail -n 20 "$root"/*.log >&2
  exit 1
fi
for pid in "${parties[@]:1}"; do wait "$pid"; done
medfed federation status "$root/server"

for site in $sites; do
  echo "3. what left $site"
  medfed site egress-report "$root/$site" | tail -n 2
done

echo "4. the same study in one process"
medfed run "$study" --data-root "$root/data" --runs "$root/in-process" >"$root/in-process.log"
final() { find "$1" -name state.safetensors | sort | tail -n 1; }
apart=$(final "$root/server/runs") together=$(final "$root/in-process")
sha256sum "$apart" "$together"
if ! cmp "$apart" "$together"; then
  echo "the weights differ" >&2
  exit 1
fi
echo "the same weights, bit for bit; scores: $(dirname "$(dirname "$(dirname "$apart")")")/report.html"

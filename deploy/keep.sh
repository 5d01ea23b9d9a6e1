# Sourced by server.sh and site.sh: run a command, pass signals on to it, start it again after failures.
#
# FIRST_PAUSE_SECONDS (5) is doubled after every failure up to LONGEST_PAUSE_SECONDS (300).

stopping=
child=

stop() { # SIGTERM and Ctrl-C: the child gets SIGTERM, closes what is open and ends with status 143
  stopping=1
  if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap stop TERM INT

say() { echo "$(date -u +%H:%M:%S) $*" >&2; }

run() { # COMMAND…: run it and return its status, however often a signal interrupts the waiting
  local status=0
  "$@" &
  child=$!
  if [ -n "$stopping" ]; then kill -TERM "$child" 2>/dev/null || true; fi # told while the child had no name yet
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do
    status=0
    wait "$child" || status=$?
  done
  child=
  return "$status"
}

keep() { # "STATUSES" COMMAND…: run it until it ends with one of STATUSES, or this script is stopped; return its status
  local final=" $1 " pause=${FIRST_PAUSE_SECONDS:-5} longest=${LONGEST_PAUSE_SECONDS:-300} status started
  shift
  while :; do
    started=$SECONDS status=0
    run "$@" || status=$?
    if [ -n "$stopping" ] || [[ $final == *" $status "* ]]; then return "$status"; fi
    if ((SECONDS - started > longest)); then pause=${FIRST_PAUSE_SECONDS:-5}; fi
    say "exit status $status; again in $pause s: $*"
    run sleep "$pause" || true
    if [ -n "$stopping" ]; then return 143; fi
    pause=$((pause * 2 < longest ? pause * 2 : longest))
  done
}

wait_for() { # FILE: wait until it is there, at most WAIT_SECONDS (3600)
  local limit=$((SECONDS + ${WAIT_SECONDS:-3600}))
  until [ -f "$1" ]; do
    if [ -n "$stopping" ]; then exit 143; fi
    if ((SECONDS > limit)); then
      say "$1 did not come within ${WAIT_SECONDS:-3600} s"
      exit 1
    fi
    run sleep 1 || true
  done
}

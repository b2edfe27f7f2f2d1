#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# How scripts show long commands (scripts/lib/progress.sh).
set -euo pipefail
# shellcheck source=../../scripts/lib/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../../scripts/lib/common.sh"

failed=0
# expect WHAT EXPECTED ACTUAL
expect() {
  [[ $2 == "$3" ]] || { echo "$1: expected '$2', got '$3'" && failed=1; }
}
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

steps() { for i in $(seq 1 40); do echo "[$i/40] step $i"; done; }
expect 'a line for every tenth' 10 "$(counted "$work/log" steps | grep -cE '^   \[[0-9]+/40\]$')"
expect 'the whole output in the log' 40 "$(grep -c step "$work/log")"
after_five_seconds() { sleep 5 && for i in $(seq 1 10); do echo "[$i/10] step"; done; }
expect 'an estimate after five seconds' 9 "$(counted "$work/log" after_five_seconds | grep -cE '/10\], about [0-9]+ s left$')"

breaks() { echo '[1/40] step' && echo 'the reason' && return 3; }
status=0
said=$( (counted "$work/log" breaks) 2>&1) || status=$?
expect 'a failure ends the script' 1 "$status"
expect 'and is told' 1 "$(grep -c 'failed (status 3)' <<<"$said")"
expect 'with its reason' 1 "$(grep -c 'the reason' <<<"$said")"

apt() { printf '%s\n' '0 upgraded, 2 newly installed, 0 to remove.' 'Get:1 a' 'Get:2 b' 'Unpacking a' 'Unpacking b' \
  'Setting up a' 'Setting up b' 'Setting up c'; }
expect 'packages fetched, unpacked and set up' '[6/6]' "$(apt | count_packages | grep '^\[' | tail -n 1)"
exit "$failed"

# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the scripts of this folder: where things lie, and how a script speaks.
#
#   MNEME_ROOT   the repository's root
#   MNEME_DEPS   everything fetched or built that is not the project: sources of hosts, models, texts
#   MNEME_VENV   a Python virtual environment, for its package client alone

MNEME_ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
MNEME_DEPS=${MNEME_DEPS:-$MNEME_ROOT/.deps}
MNEME_VENV=$MNEME_DEPS/venv
export MNEME_ROOT MNEME_DEPS MNEME_VENV

say() { printf '\n== %s\n' "$*"; }
note() { printf '   %s\n' "$*"; }
die() {
  printf '%s: %s\n' "$(basename -- "$0")" "$*" >&2
  exit 1
}

# quietly LOG command...: runs the command with its output in LOG, and shows the end of LOG if it fails.
quietly() {
  local log=$1
  shift
  mkdir -p -- "$(dirname -- "$log")"
  if ! "$@" >"$log" 2>&1; then
    tail -n 40 -- "$log" >&2
    die "'$*' failed; all of its output: $log"
  fi
}

# shellcheck source=progress.sh
source "$MNEME_ROOT/scripts/lib/progress.sh"

# sha256_is FILE SUM: whether FILE is there and has that checksum.
sha256_is() { [[ -f $1 ]] && printf '%s  %s\n' "$2" "$1" | sha256sum --check --status; }

jobs() { nproc; }

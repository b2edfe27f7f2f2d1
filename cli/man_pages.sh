#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Writes manual pages of the program MNEME and of each of its commands to FOLDER: mneme.1, mneme-list.1, ...
#
#   man_pages.sh MNEME FOLDER VERSION
set -euo pipefail
mneme=$1 folder=$2 version=$3

mkdir -p -- "$folder"
rm -f -- "$folder"/*.1
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

# page NAME COMMAND...: the page NAME.1 from the help of COMMAND, with the list of the other pages.
page() {
  local name=$1 description
  shift
  # help2man takes a page's name from that of the program it asks.
  printf '#!/bin/sh\nexec %s "$@"\n' "$(printf '%q ' "$@")" >"$work/$name"
  chmod +x -- "$work/$name"
  description=$("$work/$name" --help | head -n 1)
  help2man --no-info --section=1 --version-string="$version" --name="${description,}" --include="$work/see-also" \
    --output="$folder/$name.1" "$work/$name"
}

mapfile -t commands < <("$mneme" --help | sed -n '/^Subcommands:/,/^$/s/^  \([a-z-]*\) .*/\1/p')
((${#commands[@]} > 0))
{
  printf '[SEE ALSO]\n'
  printf '.BR mneme (1)'
  printf ',\n.BR mneme-%s (1)' "${commands[@]}"
  printf '\n'
} >"$work/see-also"
for command in "${commands[@]}"; do page "mneme-$command" "$mneme" "$command"; done
# The last, since its date says that all are there.
page mneme "$mneme"

# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by common.sh: long commands that show how far they are.

# draw_progress: reads lines that begin with "[done/all]", as Ninja writes them, and shows them as one line that changes on
# a terminal, and elsewhere as a line for every tenth. The time left is estimated from what is done by then, once that took
# five seconds.
draw_progress() {
  local line started=$SECONDS tenth=0 finished all left
  while IFS= read -r line; do
    [[ $line =~ ^\[([0-9]+)/([0-9]+)\] ]] || continue
    finished=${BASH_REMATCH[1]} all=${BASH_REMATCH[2]}
    ((finished > 0 && all > 0)) || continue
    left=
    if ((SECONDS - started >= 5 && finished < all)); then
      left=", about $(((SECONDS - started) * (all - finished) / finished)) s left"
    fi
    if [[ -t 1 ]]; then
      printf '\r   [%d/%d]%s \033[K' "$finished" "$all" "$left"
    elif ((all >= 10 && finished * 10 / all > tenth)); then
      tenth=$((finished * 10 / all))
      printf '   [%d/%d]%s\n' "$finished" "$all" "$left"
    fi
  done
  [[ ! -t 1 ]] || printf '\r\033[K'
}

# counted LOG command...: like quietly, and shows the progress that the command's output counts.
counted() {
  local log=$1 status=(0)
  shift
  mkdir -p -- "$(dirname -- "$log")"
  "$@" 2>&1 | tee -- "$log" | draw_progress || status=("${PIPESTATUS[@]}")
  ((status[0] != 0)) || return 0
  tail -n 40 -- "$log" >&2
  die "'$*' failed (status ${status[0]}); all of its output: $log"
}

# count_packages: turns the output of apt-get install into lines that begin with "[done/all]": a package is fetched,
# unpacked and set up.
count_packages() {
  local line all=0 finished=0
  while IFS= read -r line; do
    printf '%s\n' "$line"
    if [[ $line =~ ([0-9]+)\ newly\ installed ]]; then all=$((BASH_REMATCH[1] * 3)); fi
    case $line in
      Get:* | Unpacking\ * | Setting\ up\ *) ((++finished > all)) || printf '[%d/%d]\n' "$finished" "$all" ;;
    esac
  done
  return 0
}

# install_packages LOG package...: by apt-get, with progress.
install_packages() {
  local log=$1
  shift
  apt_install() { LC_ALL=C apt-get install --yes --no-install-recommends "$@" 2>&1 | count_packages; }
  counted "$log" apt_install "$@"
}

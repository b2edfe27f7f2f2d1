# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Completion of the command `mneme` for bash: commands, options, folders, and the names of a store's memories.

# __mneme_names STORE: the memories' names, one a line; those with quotes, backslashes or control characters are left out.
__mneme_names() {
  mneme list --json -- "$1" 2>/dev/null | sed -n 's/^ *"name": "\([^"\\]*\)",\{0,1\}$/\1/p'
}

# __mneme_options COMMAND: its options, one a line.
__mneme_options() {
  mneme "$1" --help 2>/dev/null | sed -n 's/^  \(-h,\)\{0,1\}\(--[a-z-]*\).*/\2/p'
}

__mneme() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} word i
  local -a positionals=()
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    local commands
    commands=$(mneme --help 2>/dev/null | sed -n '/^Subcommands:/,/^$/s/^  \([a-z-]*\) .*/\1/p')
    mapfile -t COMPREPLY < <(compgen -W "$commands --help --version" -- "$current")
    return
  fi
  case $previous in --keep | --threads | --backup) return ;; esac
  if [[ $current == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$(__mneme_options "${COMP_WORDS[1]}")" -- "$current")
    return
  fi
  for ((i = 2; i < COMP_CWORD; ++i)); do
    word=${COMP_WORDS[i]}
    case ${COMP_WORDS[i - 1]} in --keep | --threads | --backup) continue ;; esac
    [[ $word == -* ]] || positionals+=("$word")
  done
  local folders=1
  case ${COMP_WORDS[1]} in backup | restore) folders=2 ;; esac
  if ((${#positionals[@]} < folders)); then
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -A directory -- "$current")
    return
  fi
  case ${COMP_WORDS[1]} in
    export | info | evict | drop | maintain) ;;
    *) return ;;
  esac
  while IFS= read -r word; do
    [[ $word == "$current"* ]] && COMPREPLY+=("$(printf '%q' "$word")")
  done < <(__mneme_names "${positionals[0]/#\~\//$HOME/}")
}

complete -F __mneme mneme

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs in a bare Debian 12, in a folder with mneme's packages and quickstart.c (scripts/package --try): installs the
# packages and uses what they bring as a stranger would. Ends with an error at the first thing that does not work.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
export DEBIAN_FRONTEND=noninteractive

step() { printf '   %s\n' "$*"; }

step "installing"
{
  apt-get update
  apt-get install --yes --no-install-recommends ./*.deb gcc libc6-dev pkg-config cmake make man-db bash-completion
} >apt.log 2>&1 || { tail -n 20 apt.log && exit 1; }

step "a program by pkg-config"
# shellcheck disable=SC2046 # words are wanted
cc quickstart.c -o by_pkg_config $(pkg-config --cflags --libs mneme)
./by_pkg_config memories

step "a program by CMake"
mkdir project
cp quickstart.c project/
cat >project/CMakeLists.txt <<'END'
cmake_minimum_required(VERSION 3.25)
project(stranger C)
find_package(mneme 0.1 REQUIRED)
add_executable(stranger quickstart.c)
target_link_libraries(stranger mneme::mneme)
END
{ cmake -S project -B project/build && cmake --build project/build; } >cmake.log 2>&1 || { cat cmake.log && exit 1; }
./project/build/stranger memories

step "the command"
mneme list memories
mneme verify memories

step "the manual"
man mneme-verify | sed -n '/NAME/{n;p;q}'

step "completion"
# shellcheck source=/dev/null
source /usr/share/bash-completion/completions/mneme
COMP_WORDS=(mneme info memories us) COMP_CWORD=3
__mneme
[[ ${COMPREPLY[*]} == user-42 ]]

step "removing"
apt-get purge --yes libmneme0 >>apt.log 2>&1
[[ ! -e /usr/bin/mneme && ! -e /usr/include/mneme.h ]]

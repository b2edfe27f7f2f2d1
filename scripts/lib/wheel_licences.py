# SPDX-License-Identifier: Apache-2.0
"""Adds the licences of the Debian packages whose libraries a repaired wheel brings along.

    wheel_licences.py PLAIN REPAIRED     PLAIN: the wheel before auditwheel; REPAIRED is written anew
"""
from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile


# Debian packages whose code is compiled into the library and the command.
STATIC = ("libabsl-dev", "libfaiss-dev", "libxxhash-dev", "libcli11-dev", "nlohmann-json3-dev")


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def unpack(wheel: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    run(sys.executable, "-m", "wheel", "unpack", "--dest", str(folder), str(wheel))
    (root,) = folder.iterdir()
    return root


def libraries_of(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Files of the system that the wheel's library and command load, by their names."""
    found = {}
    for program in (root / "mneme" / "lib" / "libmneme.so.0", root / "mneme" / "bin" / "mneme"):
        for name, path in re.findall(r"(\S+) => (/\S+)", run("ldd", str(program))):
            found[name] = found[pathlib.Path(path).resolve().name] = pathlib.Path(path)
    return found


def package_of(library: pathlib.Path) -> str:
    """The Debian package that a file is of. Raises where none is: its licence would be missing."""
    for path in (library, library.resolve()):
        for one in (path, pathlib.Path("/usr") / path.relative_to("/")):
            result = subprocess.run(["dpkg", "-S", str(one)], capture_output=True, text=True, check=False)
            if result.returncode == 0:
                return result.stdout.partition(":")[0]
    raise SystemExit(f"{library} is of no Debian package, so its licence is not known")


def bundled(root: pathlib.Path) -> list[str]:
    """Names of the libraries in a repaired wheel without the hash that auditwheel gave them."""
    return [re.sub(r"-[0-9a-f]{8}(?=\.)", "", path.name) for path in (root / "mneme.libs").iterdir()]


def add_licences(package: str, folder: pathlib.Path) -> None:
    """The package's copyright file, and the licences that it refers to."""
    text = pathlib.Path("/usr/share/doc", package, "copyright").read_text(encoding="utf-8", errors="replace")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{package}.txt").write_text(text, encoding="utf-8")
    for name in re.findall(r"/usr/share/common-licenses/([\w.+-]*[\w+])", text):
        common = pathlib.Path("/usr/share/common-licenses", name)
        if common.exists():
            shutil.copyfile(common, folder / f"common-{name}.txt")


def main() -> None:
    plain, repaired = (pathlib.Path(path) for path in sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="mneme-wheel-") as work:
        folders = [pathlib.Path(work, name) for name in ("plain", "repaired", "packed")]
        for folder in folders:
            folder.mkdir()
        system = libraries_of(unpack(plain, folders[0]))
        root = unpack(repaired, folders[1])
        (info,) = root.glob("*.dist-info")
        packages = {package_of(system[name]) for name in bundled(root)} | set(STATIC)
        for package in sorted(packages):
            add_licences(package, info / "licenses" / "bundled")
        run(sys.executable, "-m", "wheel", "pack", "--dest-dir", str(folders[2]), str(root))
        repaired.write_bytes((folders[2] / repaired.name).read_bytes())
    with zipfile.ZipFile(repaired) as wheel:
        inside = {pathlib.PurePath(name).stem for name in wheel.namelist() if "/licenses/bundled/" in name}
    missing = packages - inside
    if missing or not packages:
        raise SystemExit(f"the wheel lacks licences of {sorted(missing)}")
    print(f"licences of {len(packages)} packages: {', '.join(sorted(packages))}")


if __name__ == "__main__":
    main()

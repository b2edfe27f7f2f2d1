# SPDX-License-Identifier: Apache-2.0
"""`python -m mneme` is the command `mneme`, which the package brings along."""
from __future__ import annotations

import os
import shutil
import sys
from typing import NoReturn

PACKAGE = os.path.dirname(os.path.abspath(__file__))


def main() -> NoReturn:
    """Becomes the command with this process's arguments."""
    program = os.path.join(PACKAGE, "bin", "mneme")
    found = program if os.path.exists(program) else shutil.which("mneme")
    if found is None:
        sys.exit(f"mneme: the command is not installed: neither {program} nor mneme in the PATH")
    os.execv(found, [found, *sys.argv[1:]])


if __name__ == "__main__":
    main()

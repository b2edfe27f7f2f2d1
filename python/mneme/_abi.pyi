# SPDX-License-Identifier: Apache-2.0
# The module itself is made from mneme.h by python/tools/make_abi.py.
from typing import Any

ffi: Any

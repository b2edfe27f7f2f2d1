# SPDX-License-Identifier: Apache-2.0
"""Runs the examples of the package's docstrings, each in a new folder. They may use the package's names and `np`."""
from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import mneme
import numpy as np
import pytest

MODULES = [mneme] + [importlib.import_module(f"mneme.{module.name}") for module in pkgutil.iter_modules(mneme.__path__)
                     if module.name not in ("__main__", "_abi")]
EXAMPLES = [test for module in MODULES for test in doctest.DocTestFinder(exclude_empty=True).find(module)
            if test.examples]


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_example(test, folder):
    names = {name: getattr(mneme, name) for name in mneme.__all__ if name != "open"}
    test.globs.update(names, mneme=mneme, np=np, folder=folder)
    assert doctest.DocTestRunner().run(test).failed == 0


def test_there_are_examples():
    assert {test.name for test in EXAMPLES} >= {"mneme", "mneme._memory.Memory.attend", "mneme._store.Store"}


def test_every_public_name_has_a_docstring():
    for name in mneme.__all__:
        thing = getattr(mneme, name)
        if not inspect.isclass(thing) and not inspect.isfunction(thing):
            continue
        assert thing.__doc__, name
        for member, value in vars(thing).items():
            if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                assert value.__doc__, f"{name}.{member}"

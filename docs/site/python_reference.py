# SPDX-License-Identifier: Apache-2.0
"""Writes the reference of the Python package as Markdown, from its docstrings, without importing it.

    python_reference.py PACKAGE
"""
from __future__ import annotations

import ast
import pathlib
import re
import sys


def public_names(package: pathlib.Path) -> list[str]:
    """`__all__` of the package."""
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [ast.literal_eval(entry) for entry in node.value.elts]
    raise SystemExit(f"{package}: no __all__")


def text_of(docstring: str) -> str:
    """A docstring as Markdown: examples and lists of arguments keep their lines."""
    blocks, result = docstring.split("\n\n"), []
    for block in blocks:
        if block.lstrip().startswith(">>>"):
            result.append(f"```python\n{block}\n```")
        elif re.match(r"(Args|Raises|Returns):\n", block):
            head, _, lines = block.partition("\n")
            entries = re.sub(r"\n {8,}", " ", lines)
            result.append(f"{head}\n\n" + re.sub(r"^ +([\w, ]+):", r"- `\1`:", entries, flags=re.MULTILINE))
        else:
            result.append(block)
    return "\n\n".join(result)


def signature(function: ast.FunctionDef) -> str:
    arguments = re.sub(r"^self,? ?", "", ast.unparse(function.args))
    returns = f" -> {ast.unparse(function.returns)}" if function.returns is not None else ""
    return f"{function.name}({arguments}){returns}"


def is_property(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator) == "property" for decorator in function.decorator_list)


def describe_fields(node: ast.ClassDef) -> list[str]:
    """Annotated fields of a dataclass with the strings below them."""
    lines = []
    for at, entry in enumerate(node.body):
        if not isinstance(entry, ast.AnnAssign):
            continue
        following = node.body[at + 1] if at + 1 < len(node.body) else None
        note = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            note = f": {following.value.value}"
        default = f" = {ast.unparse(entry.value)}" if entry.value is not None else ""
        lines.append(f"- `{ast.unparse(entry.target)}: {ast.unparse(entry.annotation)}{default}`{note}")
    return lines


def describe(node: ast.ClassDef | ast.FunctionDef, level: int, owner: str = "") -> list[str]:
    name = f"{owner}{node.name}"
    result = [f"{'#' * level} {name}", ""]
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        result += [f"`class {node.name}({bases})`" if bases else f"`class {node.name}`", ""]
    else:
        result += [f"`{signature(node)}`" if not is_property(node) else "property", ""]
    docstring = ast.get_docstring(node)
    if docstring is None:
        raise SystemExit(f"{name} has no docstring")
    result += [text_of(docstring), ""]
    if isinstance(node, ast.ClassDef):
        fields = describe_fields(node)
        result += [*fields, ""] if fields else []
        for member in node.body:
            overload = isinstance(member, ast.FunctionDef) and member.decorator_list and not is_property(member) and \
                ast.unparse(member.decorator_list[0]) == "overload"
            if isinstance(member, ast.FunctionDef) and not member.name.startswith("_") and not overload:
                result += describe(member, level + 1, f"{node.name}.")
    return result


def main() -> None:
    package = pathlib.Path(sys.argv[1])
    found = {}
    for path in sorted(package.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                found.setdefault(node.name, node)
    print("# Reference of the Python package\n")
    print("Made from the docstrings. `docs/python.md` is the introduction.\n")
    functions = [name for name in public_names(package) if isinstance(found.get(name), ast.FunctionDef)]
    errors = {"Error"}
    classes = []
    for name in public_names(package):
        node = found.get(name)
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base) for base in node.bases}
            (errors.add if bases & {"Error"} or name == "Error" else classes.append)(name)
    for title, names in (("Functions", functions), ("Classes", classes), ("Exceptions", sorted(errors))):
        print(f"## {title}\n")
        for name in names:
            print("\n".join(describe(found[name], 3)))


if __name__ == "__main__":
    main()

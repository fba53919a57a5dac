"""Writes `tree.md`: every file of the packages with the first sentence of its docstring (`make tree`)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_SENTENCE = re.compile(r".+?(?<!\bal)(?<!\beq)[.?](?= |$)|.+")
_HEAD = """\
# Every file, in a line

Made from the docstrings by `make tree`; a test says when it has to be made again. `tests/` mirrors the packages; its
`integration/` crosses them, and its `faults/` kill things.
"""


def tree(root: Path) -> str:
    """The text of `tree.md` for the packages in `root`, which are its folders with an `__init__.py`."""
    parts = [_HEAD]
    for top in sorted(path.parent for path in root.glob("*/__init__.py")):
        for package in sorted(path.parent for path in top.rglob("__init__.py")):
            files = sorted(path for path in package.glob("*.py") if path.name != "__init__.py")
            lines = [f"- `{path.name}`: {first_sentence(path)}\n" for path in files]
            heading = "##" if package == top else "###"
            about = first_sentence(package / "__init__.py")
            parts.append(f"{heading} {package.relative_to(root).as_posix()}/\n\n{about}\n\n" + "".join(lines))
    return "\n".join(parts)


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, "" where there is none."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    found = _SENTENCE.match(" ".join(paragraph.split()))
    return found.group() if found else ""


if __name__ == "__main__":
    (_ROOT / "docs" / "tree.md").write_text(tree(_ROOT), encoding="utf-8")

"""Imports point one way. Read from the source, so that an import hidden in a function counts as well."""

from __future__ import annotations

import ast
import functools
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {
    "audition",
    "clip_models",
    "clipstill",
    "demo",
    "distill",
    "evaluation",
    "ingest",
    "pages",
    "pictures",
    "shards",
    "stats",
    "teacher_cache",
}

ALLOWED: dict[str, set[str]] = {
    "clipstill": {
        "audition",
        "ingest",
        "teacher_cache",
        "distill",
        "clip_models",
        "shards",
        "stats",
        "evaluation",
        "demo",
    },
    "audition": {"teacher_cache", "distill", "clip_models", "pages", "shards"},
    "demo": {"ingest", "teacher_cache", "distill", "evaluation", "clip_models", "pages", "shards"},
    "ingest": {"shards", "pages", "pictures"},
    "stats": {"shards", "pages", "pictures"},
    "teacher_cache": {"shards", "pages", "pictures", "clip_models"},
    "distill": {
        "evaluation",
        "pages",
        "shards",
        "clip_models",
        "teacher_cache.reader",
        "teacher_cache.captions",
        "teacher_cache.join",
        "teacher_cache.layout",
        "teacher_cache.settings",
        "teacher_cache.several",
        "teacher_cache.views",
    },
    "evaluation": {"clip_models", "pages", "shards"},
    "clip_models": {"shards.errors", "shards.lazy", "shards.settings", "shards.storage", "shards.text"},
    "pages": {"shards"},
    "pictures": set(),
    "shards": {"pictures"},
}
"""Package → what of ours it may import: a whole package, or single modules of it."""

ONLY_HOME = {
    "ray": (
        "shards/ray_session.py",
        "shards/ray_executor.py",
        "shards/ray_worker.py",
        "shards/ray_call.py",
        "shards/ray_metrics.py",
        "shards/ray_outages.py",
        "distill/training/ray_launcher.py",
    )
}
"""A library → the files that import it, and only inside functions."""

LATE = {"stats": {"torch", "ray"}, "pages": {"torch", "ray"}, "pictures": {"torch", "ray"}, "shards": {"torch", "ray"}}
"""Package → libraries that it imports inside functions at most."""


@dataclass(frozen=True)
class Import:
    """One imported module: `a.b` of `import a.b`; of `from a import b`, both `a` and `a.b` are one each."""

    file: str
    line: int
    module: str
    late: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports_of(root: Path, path: Path) -> Iterator[Import]:
    """Every import of a file, relative ones resolved; `late` if it stands in a function."""
    file = str(path.relative_to(root))
    package = path.relative_to(root).parent.parts

    def walk(node: ast.AST, late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for name in child.names:
                    yield Import(file, child.lineno, name.name, late)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else ()
                module = ".".join([*base, *([child.module] if child.module else [])])
                for name in ["", *(alias.name for alias in child.names)]:
                    yield Import(file, child.lineno, ".".join(part for part in (module, name) if part), late)
            inside = late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, inside or _for_types_alone(child))

    yield from walk(ast.parse(path.read_text(), str(path)), late=False)


def _for_types_alone(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def offences(root: Path) -> list[str]:
    """Every import below `root` that points the wrong way."""
    found: list[str] = []
    for package in sorted(OURS):
        for path in sorted((root / package).rglob("*.py")):
            seen = list(imports_of(root, path))
            modules = {(entry.line, entry.module) for entry in seen}
            for entry in seen:
                top = entry.module.split(".")[0]
                if top in OURS and top != package and not _allowed(root, package, entry, modules):
                    found.append(
                        f"{entry}: {package} may import {', '.join(sorted(ALLOWED[package])) or 'none of ours'}"
                    )
                if top in ONLY_HOME and entry.file not in ONLY_HOME[top]:
                    found.append(f"{entry}: only {' and '.join(ONLY_HOME[top])} may import {top}")
                if top in LATE.get(package, ()) and not entry.late:
                    found.append(f"{entry}: {package} may import {top} inside functions only")
    return sorted(set(found))


def _allowed(root: Path, package: str, entry: Import, modules: set[tuple[int, str]]) -> bool:
    for allowed in ALLOWED[package]:
        if entry.module == allowed or entry.module.startswith(f"{allowed}."):
            return True
        # `from teacher_cache import reader`: the package itself is no more than the way to an allowed module.
        if "." in allowed and entry.module == allowed.split(".")[0]:
            rest = {module for line, module in modules if line == entry.line and module.startswith(f"{entry.module}.")}
            if rest and all(_is_module(root, module) for module in rest):
                return True
    return False


def _is_module(root: Path, module: str) -> bool:
    path = root.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def test_imports_point_one_way() -> None:
    assert offences(ROOT) == []


def circles(root: Path) -> list[str]:
    """Files that import each other in a circle, be it inside functions, but not for types alone."""
    needs: dict[str, set[str]] = {}
    for package in OURS:
        for path in (root / package).rglob("*.py"):
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            found = {entry.module for entry in imports_of(root, path) if not _for_types(path, entry)}
            needs[module] = {name for name in found if root.joinpath(*name.split(".")).with_suffix(".py").is_file()}
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def _for_types(path: Path, entry: Import) -> bool:
    return entry.late and any(entry.line in lines for lines in _type_blocks(path.read_text()))


@functools.cache
def _type_blocks(source: str) -> list[range]:
    found = [node for node in ast.parse(source).body if isinstance(node, ast.If) and _for_types_alone(node)]
    return [range(node.lineno, (node.end_lineno or 0) + 1) for node in found]


def test_no_files_import_each_other() -> None:
    assert circles(ROOT) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    for file, line in {
        "shards/one.py": "def f():\n    from shards.two import g",
        "shards/two.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from shards.one import f",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(line)
    assert circles(tmp_path) == []
    (tmp_path / "shards" / "two.py").write_text("from shards.one import f")
    assert set(circles(tmp_path)) == {"shards.one", "shards.two"}


def test_every_package_was_read() -> None:
    counts = {package: len(list((ROOT / package).rglob("*.py"))) for package in OURS}
    assert min(counts.values()) >= 2, counts
    home = list(imports_of(ROOT, ROOT / "shards" / "ray_executor.py"))
    assert {entry.late for entry in home if entry.module == "ray"} == {True}
    edges = set()
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            edges |= {(package, entry.module.split(".")[0]) for entry in imports_of(ROOT, path)}
    for package in ("ingest", "teacher_cache", "distill", "clip_models", "clipstill"):
        assert (package, "shards") in edges or package == "clipstill"
    assert {("distill", "teacher_cache"), ("clipstill", "distill"), ("teacher_cache", "clip_models")} <= edges


FINE = {
    "shards/__init__.py": "from shards.errors import UserError\nimport json",
    "shards/errors.py": "",
    "shards/storage.py": "def f():\n    import torch",
    "shards/ray_executor.py": "def f():\n    import ray\n    from ray.util import queue",
    "ingest/task.py": "from shards import Dataset\nfrom . import sources\nfrom .sources import x",
    "teacher_cache/reader.py": "import shards.storage",
    "teacher_cache/views.py": "from shards.errors import UserError",
    "teacher_cache/build.py": "from clip_models import load_model",
    "distill/train.py": "import torch\nfrom teacher_cache.reader import A\nfrom teacher_cache import views, reader",
    "distill/deep/inner.py": "from .. import train\nfrom ..train import Run\nfrom teacher_cache.views import View",
    "clip_models/models.py": "from shards.errors import UserError\nfrom shards.storage import Folder",
    "clipstill/main.py": "def f():\n    from distill.training.train import train\n    import ingest.task",
}


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("shards/errors.py", "import distill"),
        ("shards/errors.py", "import torch"),
        ("shards/errors.py", "import torch.nn as nn"),
        ("shards/errors.py", "class C:\n    from torch import nn"),
        ("shards/errors.py", "try:\n    import torch\nexcept ImportError:\n    pass"),
        ("shards/ray_executor.py", "import ray"),
        ("shards/storage.py", "def f():\n    import ray"),
        ("shards/storage.py", "def f():\n    from clip_models import x"),
        ("ingest/task.py", "from distill.training.train import train"),
        ("ingest/task.py", "def f():\n    def g():\n        import distill.data.order"),
        ("ingest/task.py", "import teacher_cache.views"),
        ("ingest/task.py", "import clip_models"),
        ("ingest/task.py", "from ray import init"),
        ("distill/train.py", "import ingest"),
        ("distill/train.py", "from teacher_cache.building import build_cache"),
        ("distill/train.py", "from teacher_cache import building"),
        ("distill/train.py", "from teacher_cache import reader, teachers"),
        ("distill/train.py", "from teacher_cache import TeacherCache"),
        ("distill/train.py", "def f():\n    import teacher_cache.verify"),
        ("distill/deep/inner.py", "from ... import ingest"),
        ("distill/deep/inner.py", "import teacher_cache"),
        ("distill/train.py", "import clipstill.main"),
        ("teacher_cache/build.py", "import distill.data.order"),
        ("teacher_cache/build.py", "async def f():\n    import ingest"),
        ("clip_models/models.py", "from shards import UserError"),
        ("clip_models/models.py", "import shards.runner"),
        ("clip_models/models.py", "import distill.models"),
        ("clipstill/main.py", "import ray"),
    ],
)
def test_the_check_itself_finds_an_import_that_points_the_wrong_way(tmp_path: Path, file: str, line: str) -> None:
    for name, text in FINE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert offences(tmp_path) == []
    path = tmp_path / file
    path.write_text(f"{FINE[file]}\n{line}\n")
    found = offences(tmp_path)
    assert found
    assert all(offence.startswith(f"{file}:") for offence in found)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("distill.training.train", ["ray", "teacher_cache.teachers", "teacher_cache.building", "ingest"]),
        ("shards", ["torch", "ray"]),
        ("teacher_cache", ["torch", "ray", "open_clip"]),
        ("distill.data.order", ["torch", "ray"]),
        ("distill.settings", ["torch", "ray", "open_clip", "pyarrow"]),
        ("ingest.settings", ["torch", "ray", "cv2", "pyarrow"]),
        ("teacher_cache.building.settings", ["torch", "ray", "open_clip", "pyarrow"]),
        ("teacher_cache.teachers.load", ["torch", "open_clip"]),
        ("distill.export", ["torch", "open_clip"]),
    ],
)
def test_what_an_import_does_not_load(module: str, absent: list[str]) -> None:
    program = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert module in loaded
    assert not loaded & set(absent)

"""What is imported when it is first asked for: packages that cost nothing until they are used, and registries.

A command's help, or a wrong option, must not wait for torch; so what a command line is made of (settings, and the names
of what can be chosen) imports nothing heavy.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def resolve(reference: str) -> Any:
    """What `package.module:name` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def lazily(package: str, *modules: str) -> Callable[[str], Any]:
    """A package's `__getattr__`: its `__all__` comes from these modules of it, the first that has the name, when asked.

    Light modules stand before heavy ones. No name may be a module's too.
    """

    def __getattr__(name: str) -> Any:
        if name in sys.modules[package].__dict__.get("__all__", ()):
            for module in modules:
                found = importlib.import_module(f"{package}.{module}")
                if hasattr(found, name):
                    setattr(sys.modules[package], name, getattr(found, name))
                    return getattr(found, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__


class Registry(Mapping[str, T]):
    """Name → what it names, imported when it is looked up: the only list of what can be chosen by name."""

    def __init__(self, references: Mapping[str, str]) -> None:
        self.references = dict(references)
        """Name → `package.module:name`; a test or a program may add its own."""

    def __getitem__(self, name: str) -> T:
        found: T = resolve(self.references[name])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.references)

    def __len__(self) -> int:
        return len(self.references)

    def __contains__(self, name: object) -> bool:
        return name in self.references

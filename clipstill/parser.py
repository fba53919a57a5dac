"""The command line's parser: argparse, but what it half understands is refused, with the nearest that there is."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

_ADDING = (argparse._AppendAction, argparse._HelpAction)
_MAY_BE_EMPTY = {"text"}
"""What is embedded may be nothing; paths, names and models may not."""


class Parser(argparse.ArgumentParser):
    """Options are written out. One that is given twice adds up if it can be repeated, else it is refused.

    `fill` adds the options, if there are any, once it is this command's turn: no command waits for another's.
    """

    def __init__(self, *args: Any, fill: Callable[[Parser], None] | None = None, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self._fill, self._sections = fill, {"": self}

    def section(self, title: str) -> Any:
        """What takes the options under this heading."""
        if title not in self._sections:
            self._sections[title] = self.add_argument_group(title)  # type: ignore[assignment]
        return self._sections[title]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; of a parser with commands these look at their own options."""
        if self._fill is not None:
            fill, self._fill = self._fill, None
            fill(self)
        if args is not None and self._subparsers is None:
            self._check_options(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """One line and the way to the others, instead of all options; where a command is missing, all there are."""
        if self._subparsers is not None and message.startswith("the following arguments are required"):
            self.print_help(sys.stderr)
            self.exit(2)
        end = "" if message.endswith("?") else "."
        self.exit(2, f"{self.prog}: error: {message}{end} See `{self.prog} --help`\n")

    def _check_options(self, args: Sequence[str]) -> None:
        seen: dict[str, str] = {}
        for word in args:
            if word == "--":
                return
            flag = word.partition("=")[0]
            action = self._option_string_actions.get(flag)
            if action is None:
                if word.startswith("--"):
                    self.error(f"there is no option {flag}{_nearest(flag, self._option_string_actions)}")
                continue
            if action.dest in seen and not isinstance(action, _ADDING):
                other = seen[action.dest]
                self.error(f"{flag} is given twice" if other == flag else f"{other} and {flag} are both given")
            seen[action.dest] = flag

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if "" in arg_strings and action.dest not in _MAY_BE_EMPTY and action.nargs != argparse.PARSER:
            # An empty path is the current folder to many a library.
            raise argparse.ArgumentError(action, "it is empty: a variable that is not set?")
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            near = _nearest(str(value), known) or f"; there are {', '.join(known)}"
            raise argparse.ArgumentError(action, f"{value!r} is not known{near}")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one that is most like a word, if any is. The dashes that all options begin with make none of them alike."""
    bare = {one.lstrip("-"): one for one in known}
    close = difflib.get_close_matches(word.lstrip("-"), bare, n=1)
    return bare[close[0]] if close else None


def _nearest(word: str, known: Iterable[str]) -> str:
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""

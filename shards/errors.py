"""The errors a user can meet. Everything else that is raised is a bug of ours and keeps its traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: one line with the value seen, where it was seen and what to do.

    The command line prints the line without a traceback and exits with status 2.
    """

    def __init__(self, problem: str, *, where: str = "", do: str = "") -> None:
        self.problem, self.where, self.do = problem, where, do
        line = f"{where}: {problem}" if where else problem
        super().__init__(" ".join(f"{line}. {do}".split()) if do else " ".join(line.split()))

    def __reduce__(self) -> tuple[object, ...]:
        return _user_error, (self.problem, self.where, self.do)


def _user_error(problem: str, where: str, do: str) -> UserError:
    return UserError(problem, where=where, do=do)


class ShardError(Exception):
    """A shard that no retry can mend (damaged input, a sample that cannot be processed): it is quarantined."""


class IncompleteError(Exception):
    """Work ended with shards missing. The message names them and their causes; the exit status is 1."""

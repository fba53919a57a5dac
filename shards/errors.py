"""The errors a user can meet. Everything else that is raised is a bug of ours and keeps its traceback."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

from shards.credentials import without_credentials

_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def one_line(text: str) -> str:
    """A text in one line that no terminal obeys and that has no credentials: libraries colour what they say, quote the
    URLs that they ask for, and data may hold anything.
    """
    return " ".join(_CONTROL.sub(" ", _SEQUENCE.sub("", without_credentials(text))).split())


class UserError(Exception):
    """Something the user can put right: one line with the value seen, where it was seen and what to do.

    The command line prints the line without a traceback and exits with status 2.
    """

    def __init__(self, problem: str, *, where: str = "", do: str = "") -> None:
        self.problem, self.where, self.do = map(without_credentials, (problem, where, do))
        line = f"{where}: {problem}" if where else problem
        super().__init__(one_line(f"{line}. {do}" if do else line))

    def at(self, place: str) -> UserError:
        """The same, met at a place."""
        return UserError(f"{self.problem}, at {place}", where=self.where, do=self.do)

    def __reduce__(self) -> tuple[object, ...]:
        return _user_error, (self.problem, self.where, self.do)


def _user_error(problem: str, where: str, do: str) -> UserError:
    return UserError(problem, where=where, do=do)


ROOM = "Make room there and in $TMPDIR, then run the same command again"


@contextlib.contextmanager
def full_disk(where: str) -> Iterator[None]:
    """Raise `UserError` if what is written in the block finds the disk full; `where` names what is written to."""
    try:
        yield
    except OSError as error:
        if (full := disk_is_full(error, where)) is not None:
            raise full from error
        raise


def disk_is_full(error: BaseException, where: str) -> UserError | None:
    """What to tell the user if `error` says that a disk is full, else None."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return UserError(f"the disk is full ({' '.join(str(error).split())})", where=where, do=ROOM)
    return None


class ShardError(Exception):
    """A shard that no retry can mend (damaged input, a sample that cannot be processed): it is quarantined.

    `key` is the sample's, where it is one sample.
    """

    def __init__(self, problem: str, key: str | None = None) -> None:
        self.key = key
        super().__init__(problem)


class IncompleteError(Exception):
    """Work ended with shards missing. The message names them and their causes; the exit status is 1."""

"""What the commands that only use a student share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipstill.parser import Parser
from shards.errors import UserError


def add_student(parser: Parser) -> None:
    parser.add_argument("student", metavar="STUDENT", help="a run's folder, a model's, an export's, or ARCH:TAG")


def add_device(parser: Parser) -> None:
    parser.add_argument("--device", metavar="NAME", help="as torch calls it (default: a GPU where there is one)")


def refuse_no_pictures(student: str, images: Sequence[str]) -> None:
    """Raise `UserError` unless there is such a student, and a file at each path; before anything slow."""
    from distill.use.opening import refuse_unknown  # noqa: PLC0415

    refuse_unknown(student)
    for path in images:
        if Path(path).is_dir():
            do = f"Give the pictures in it, as {path.rstrip('/')}/*.jpg"
            raise UserError("this is a folder, not a picture", where=path, do=do)
        if not Path(path).exists():
            raise UserError("there is no such picture", where=path, do="Check the path; nothing is downloaded here")

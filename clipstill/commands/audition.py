"""`clipstill cache audition`: which teacher, at which scale, makes the better students."""

from __future__ import annotations

import argparse
from typing import Any

from clipstill.commands.common import Subparsers, add_command, show
from clipstill.options import add_options, given
from clipstill.parser import Parser
from shards.errors import UserError
from shards.settings import make

_AUDITION = """\
Find out which teacher, at which logit scale, makes the better students, before much is spent on one.

On a part of the dataset a small student takes a few hundred steps for each teacher, scale and seed; a page says who won
and by how much beside the seeds' spread. Goes on where it stopped; more teachers, scales and seeds are heard beside
those that were. The scale that a model carries is often not the best to learn from, nor is the strongest teacher.
"""

_EXAMPLE = """\
  clipstill cache audition data/cc3m --teacher ViT-B-16:openai --teacher ViT-L-14:openai --scale 40,60,80
  clipstill cache audition data/cc3m --cache data/cc3m-cache --seeds 5 --out auditions/cc3m
"""


def add(actions: Subparsers) -> None:
    add_command(actions, "audition", _AUDITION, _EXAMPLE, run=run, fill=_options)


def _options(parser: Parser) -> None:
    from audition.settings import AuditionSettings  # noqa: PLC0415 - each command imports its own alone

    add_options(parser, AuditionSettings)


def run(args: argparse.Namespace) -> int:
    from audition.settings import AuditionSettings  # noqa: PLC0415
    from shards import Dataset  # noqa: PLC0415
    from teacher_cache.teachers.load import refuse_spec  # noqa: PLC0415

    settings = make(AuditionSettings, _numbers(given(args, AuditionSettings)))
    Dataset.open(settings.shards)
    for teacher in settings.teachers if settings.cache is None else ():
        refuse_spec(teacher)
    from audition.run import audition, build_settings  # noqa: PLC0415 - brings torch
    from audition.verdict import in_words  # noqa: PLC0415
    from shards import InProcess  # noqa: PLC0415
    from teacher_cache.building import build_cache  # noqa: PLC0415

    def build(shards: str, cache: str) -> None:
        build_cache(build_settings(settings, shards, cache), InProcess())

    verdict, figure, page = audition(settings, build)
    for sentence in in_words(verdict, figure):
        show(sentence)
    show(str(page))
    return 0


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """With scales as numbers, which come with commas between them."""
    if "scales" not in values:
        return values
    try:
        return values | {"scales": tuple(float(text) for text in values["scales"])}
    except ValueError:
        told = f"{','.join(values['scales'])!r} are not all numbers"
        raise UserError(told, where="--scale", do="Write 40,60,80") from None

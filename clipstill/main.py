"""The entry point `clipstill`, and what errors become: one line and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from clipstill.commands import (
    cache,
    classify,
    compare,
    demo,
    distill,
    embed,
    evaluate,
    export,
    ingest,
    models,
    plan,
    shards,
    status,
)
from clipstill.logs import start_logging
from clipstill.parser import Parser, nearest
from clipstill.signals import told_to_end
from shards.causes import machines_refusal
from shards.credentials import without_credentials
from shards.errors import IncompleteError, UserError, one_line
from shards.scratch import command_scratch

_COMMANDS = (ingest, shards, cache, distill, compare, evaluate, export, classify, embed, models, plan, status, demo)

_BESIDE = {"ingest": {"retry", "report"}, "models": {"bench", "join"}}
"""Commands that take files or names → second words that make another command of them."""

_DESCRIPTION = """\
Turn lists of image URLs into small CLIP models, running the teacher only once.

  clipstill ingest   URL list                 -> shards (webdataset tars, every row accounted for)
  clipstill cache    shards + teacher         -> teacher cache (embeddings, once)
  clipstill distill  shards + cache           -> student (no teacher in sight)
  clipstill compare  runs                     -> one page with their curves over each other
  clipstill evaluate, export                  -> numbers, and folders others can load
  clipstill classify, embed                   -> what a student says of pictures and texts
  clipstill status   any of these, unfinished -> how far it has come, and which command goes on
  clipstill models                            -> the published students and teachers: how large, how fast
  clipstill plan                              -> what all of it will take: requests, bytes, hours, money

Every command may be interrupted at any moment and started again: it goes on where it was.
`clipstill COMMAND --help` explains each, with an example. `clipstill demo` runs the whole path on data it makes.
"""

_EPILOG = """\
exit status: 0 done; 1 finished with something missing or found damaged; 2 unusable input or a machine that
refuses (a full disk, permissions); 70 a mistake of clipstill's own; 130 interrupted, 143 ended
"""

_INTERRUPTED = "clipstill: interrupted. What was published stays; the same command goes on from there"


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        "clipstill",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser


def _version() -> str:
    try:
        return version("clipstill")
    except PackageNotFoundError:
        return "(not installed)"  # shipped to a cluster as a working folder


def _joined(words: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """`ingest` takes files, so what may stand in their place is one command with it: `ingest retry`. So is `models`."""
    first, second = [*words[:2], "", ""][:2]
    beside = _BESIDE.get(first, set())
    if second in beside:
        return [f"{first} {second}", *words[2:]]
    # A word that might be a file's or a model's name, but for what it is like.
    # (`Path.exists` raises where a name is too long for one.)
    near = nearest(second, beside) if second.isalpha() and not os.path.exists(second) else None  # noqa: PTH110
    if near:
        parser.error(f"there is no command {first} {second}; did you mean {first} {near}?")
    return list(words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(_joined(sys.argv[1:] if arguments is None else arguments, parser))
    # Threads of torch that wait for each other by spinning take the cores from the loader and from whatever else runs:
    # measured on 2 cores with one of them busy, a step took ten times as long. Read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _keep_what_torch_compiles()
    # Its retries would bury the one line that says what happened.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    told: list[int] = []
    try:
        start_logging()
        with told_to_end(told), command_scratch():
            status: int = args.run(args)
    except UserError as error:
        _say(f"clipstill: error: {error}")
        return 2
    except IncompleteError as error:
        _say(f"clipstill: incomplete: {error}")
        return 1
    except KeyboardInterrupt as interrupt:
        if os.environ.get("RANK", "0") == "0":  # of the processes of one run the first speaks
            _say(f"clipstill: {interrupt}" if interrupt.args else _INTERRUPTED)
        return 128 + (told or [getattr(interrupt, "signal", signal.SIGINT)])[0]
    except BrokenPipeError:
        # Whoever read the output has read enough (`| head`): nobody is there to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        refusal = machines_refusal(error)
        if refusal is None:
            raise
        _say(f"clipstill: error: {refusal}")
        return 2
    return status


def _keep_what_torch_compiles() -> None:
    """For the next run too: in $TMPDIR, where torch keeps it unless told, it would go with this one. Where there is no
    home, or a read-only one as in containers, it does: torch makes its folder as soon as it is imported.
    """
    with contextlib.suppress(RuntimeError, OSError):
        compiled = Path.home() / ".cache" / "torchinductor"
        there = next(path for path in (compiled, *compiled.parents) if path.exists())
        if os.access(there, os.W_OK | os.X_OK):
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))


def _say(line: str) -> None:
    line = line.encode(errors="backslashreplace").decode()  # names of files may be any bytes
    print(without_credentials(line), file=sys.stderr, flush=True)  # noqa: T201


def run() -> None:
    """The console script."""
    # Third parties' deprecation notes are not the user's business; tests run with them as errors.
    warnings.simplefilter("ignore")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names of files may be any bytes
    try:
        status = main()
    except Exception as error:  # noqa: BLE001 - a mistake of ours
        _say(traceback.format_exc())
        _say(
            f"clipstill: bug: {type(error).__name__}: {one_line(str(error))}. This is a mistake in clipstill, not in "
            "what you gave it: please report the lines above to its maintainers, with the command and `pip freeze`"
        )
        status = 70
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    # Ray and loader threads may still be winding down after an interrupt; everything that counts is on disk.
    os._exit(status)

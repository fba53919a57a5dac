"""The command that asks for a run, as its dataset keeps it: who wants the same again can have it said."""

from __future__ import annotations

from dataclasses import replace

from ingest.settings import IngestSettings
from shards.spelled import words_of


def command_of(settings: IngestSettings) -> tuple[str, ...]:
    """The words of `clipstill ingest` or `clipstill shards pack` that ask for these settings, but for `--out`.

    A proxy's URL with a password in it is left out.
    """
    if not settings.source.files:
        return ("clipstill", "ingest", *words_of(_told(settings), without={"out"}))
    source = settings.source
    words = words_of(source, without={"url_column"})
    words += ["--column", source.url_column] if source.url_column is not None else []
    words += ["--root", source.root] if source.root is not None else []
    words += words_of(settings, without={"source", "out", "network", "stop_on_collapse", "engine"})
    return ("clipstill", "shards", "pack", *words)


def retry_command_of(settings: IngestSettings) -> tuple[str, ...]:
    """As `command_of`, of the retry with this network and patience; the dataset is left out."""
    others = {"source", "out", "name", "shard_size", "image", "engine"}
    return ("clipstill", "ingest", "retry", *words_of(_told(settings), without=others))


def _told(settings: IngestSettings) -> IngestSettings:
    if "@" not in (settings.network.proxy or ""):
        return settings
    return replace(settings, network=replace(settings.network, proxy=None))

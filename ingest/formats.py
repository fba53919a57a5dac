"""What a list can be: the kinds of files, and published lists with their columns' names and what is worth keeping.

A kind of file is an entry of `KINDS` and its reader, a published list one of `LAYOUTS`; nothing else names them. Names
of columns are matched without regard to case. Kept columns that the ledger has under the same name are renamed: a width
in a list is what somebody once measured, and becomes `listed_width`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Kind:
    """`reader`: `module:class` of what reads such files, as `sources/reader.py` says, made with an encoding (of CSV,
    TSV and YFCC100M with more, in `sources/source.py`).

    `endings`: of the files' names. `lines`: rows may be added at the end.
    """

    reader: str
    endings: tuple[str, ...] = ()
    lines: bool = False


KINDS: dict[str, Kind] = {
    "txt": Kind(reader="ingest.sources.delimited:TxtReader", endings=(".txt",), lines=True),
    "csv": Kind(reader="ingest.sources.quoted:QuotedReader", endings=(".csv",), lines=True),
    "tsv": Kind(reader="ingest.sources.delimited:TsvReader", endings=(".tsv",), lines=True),
    "jsonl": Kind(reader="ingest.sources.objects:JsonReader", endings=(".jsonl", ".ndjson"), lines=True),
    "json": Kind(reader="ingest.sources.objects:JsonReader", endings=(".json",)),
    "parquet": Kind(reader="ingest.sources.parquet:ParquetReader", endings=(".parquet",)),
    "yfcc": Kind(reader="ingest.sources.yfcc:YfccReader"),
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a format's files are read.

    `headers`: the columns of files that do not name them; of several, those that are as many as the fields. `url`,
    `caption`, `digest`: names that a column may have, the first there is is taken. `kept`: columns kept where they
    exist, each as possible names and the name that it gets (None: the one it has).
    """

    kind: str | None = None
    headers: tuple[tuple[str, ...], ...] = ()
    url: tuple[str, ...] = ("url",)
    caption: tuple[str, ...] = ("caption", "text")
    digest: tuple[str, ...] = ()
    kept: tuple[tuple[tuple[str, ...], str | None], ...] = ()


_SIZES = ((("original_width", "width"), "listed_width"), (("original_height", "height"), "listed_height"))

YFCC_COLUMNS = (
    "line",
    "photo_id",
    "photo_hash",
    "user_id",
    "nickname",
    "date_taken",
    "date_uploaded",
    "device",
    "title",
    "description",
    "user_tags",
    "machine_tags",
    "longitude",
    "latitude",
    "accuracy",
    "page_url",
    "download_url",
    "license",
    "license_url",
    "server",
    "farm",
    "secret",
    "secret_original",
    "extension",
    "marker",
)
"""YFCC100M's own files have no header; these are our names for its columns."""

LAYOUTS: dict[str, Layout] = {
    "auto": Layout(),
    # The second is the subset with labels that a classifier found.
    "cc3m": Layout(kind="tsv", headers=(("caption", "url"), ("caption", "url", "labels", "mids", "confidences"))),
    "cc12m": Layout(kind="tsv", headers=(("url", "caption"),)),
    "yfcc15m": Layout(
        kind="yfcc",
        url=("download_url",),
        caption=("caption",),
        kept=tuple(((name,), None) for name in ("photo_id", "nickname", "page_url", "license", "license_url")),
    ),
    # LAION-400M, LAION-2B with its variants, and Re-LAION, whose names are lower case.
    "laion": Layout(
        kind="parquet",
        caption=("text", "caption"),
        kept=(
            (("sample_id",), None),
            (("key",), "listed_key"),
            *(
                ((name,), None)
                for name in ("license", "language", "nsfw", "similarity", "punsafe", "pwatermark", "hash")
            ),
            (("aesthetic", "aesthetic_score"), None),
            *_SIZES,
        ),
    ),
    "datacomp": Layout(
        kind="parquet",
        caption=("text",),
        digest=("sha256",),
        kept=(
            *(((name,), None) for name in ("uid", "clip_b32_similarity_score", "clip_l14_similarity_score")),
            (("face_bboxes",), None),
            *_SIZES,
        ),
    ),
}
"""Published lists; the kinds of files that a name ends in are formats too, of columns called url and caption."""

LAYOUTS |= {name: Layout(kind=name) for name, kind in KINDS.items() if kind.endings}

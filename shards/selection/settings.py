"""What the user chooses when samples of a dataset are selected."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from shards.errors import UserError
from shards.settings import option, settings

Unique = Literal["exact", "near", "embeddings"]
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)(%?)")


@settings
class FilterSettings:
    """Which samples to keep; every rule is put to what those before it have left, in the order of the fields.

    `tables` bring columns by key; one of `cache report`'s (`scores.parquet`) has `clip_score`. Each of `best` and `per`
    is `COLUMN=AMOUNT`, an amount a number of samples or, with %, a share.
    """

    shards: Annotated[str, option("a dataset", flag="SHARDS", path=True)]
    out: Annotated[str, option("where the selection goes; no image is copied", "FOLDER")]
    tables: Annotated[
        tuple[str, ...],
        option(
            "Parquet with a column key and others to judge by, such as a cache's scores.parquet; repeatable",
            "FILE",
            flag="--table",
            path=True,
        ),
    ] = ()
    keys: Annotated[
        str | None,
        option(
            "keep these alone: keys, a line each or a Parquet's column key, or DataComp's uids as .npy",
            "FILE",
            path=True,
        ),
    ] = None
    where: Annotated[
        tuple[str, ...],
        option(
            "keep samples that meet it, such as 'width >= 256'; a column of the metadata or of a table, or caption, "
            "caption_words, caption_chars, width, height, short_side, aspect, bytes; repeatable",
            "CONDITION",
        ),
    ] = ()
    unlike: Annotated[
        tuple[str, ...],
        option(
            "leave out the images of this dataset, an evaluation's, and near copies of them; repeatable",
            "SHARDS",
            path=True,
        ),
    ] = ()
    unique: Annotated[
        Unique | None,
        option(
            "of equal images keep the first: equal bytes; near copies; or what `cache report` calls near in a table"
        ),
    ] = None
    best: Annotated[str | None, option("keep those highest in a column: clip_score=30%", "COLUMN=AMOUNT")] = None
    per: Annotated[str | None, option("keep so many of each value of a column at most: cluster=1000", "COLUMN=N")] = (
        None
    )
    sample: Annotated[str | None, option("keep so many, drawn by their keys", "AMOUNT")] = None
    seed: Annotated[int, option("of --sample, and of which are kept by --per", "N")] = 0

    def __post_init__(self) -> None:
        for flag, text, named in (
            ("--best", self.best, True),
            ("--per", self.per, True),
            ("--sample", self.sample, False),
        ):
            if text is not None:
                _, _, is_share = amount_of(text, flag, named=named)
                if flag == "--per" and is_share:
                    raise UserError(f"{text!r} is a share", where=flag, do="Write COLUMN=NUMBER")
        if self.unique == "embeddings" and not self.tables:
            raise UserError(
                "near embeddings stand in a table, and none is given",
                where="--unique embeddings",
                do="Run `clipstill cache report`, and give the scores.parquet that it writes as --table",
            )


def amount_of(text: str, flag: str, *, named: bool = True) -> tuple[str, float, bool]:
    """Column, amount and whether that is a share (0 to 1), of `COLUMN=AMOUNT` or, without `named`, of `AMOUNT`."""
    column, _, amount = text.rpartition("=")
    found = _AMOUNT.fullmatch(amount.strip())
    whole = found is not None and (found[2] or float(found[1]).is_integer())
    if found is None or not whole or bool(column) != named or (found[2] and float(found[1]) > 100):
        form = "COLUMN=NUMBER or COLUMN=SHARE%" if named else "a NUMBER or a SHARE%"
        raise UserError(f"{text!r} is no amount", where=flag, do=f"Write {form}")
    value = float(found[1])
    return column, value / 100 if found[2] else value, bool(found[2])

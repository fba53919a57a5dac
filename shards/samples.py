"""Write a dataset from samples that are at hand: what `clipstill ingest` does for URLs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from shards.dataset import PLANNING, Stage, publish_planning, publish_whole, read_lists
from shards.errors import UserError, one_line
from shards.fingerprint import fingerprint
from shards.keys import check_dataset_name, is_key
from shards.places import refuse_other_things
from shards.publication import Publication
from shards.reader import Dataset
from shards.record import RECORDS, ShardRecord, published_records
from shards.sample import Sample
from shards.storage import Folder
from shards.task import Spec

Given = tuple[str, bytes, str | Sequence[str], Mapping[str, Any]]
"""A sample as it is written: key, encoded image, caption or several of them, further fields of the JSON.

A key is 1 to 90 ASCII letters, digits, - or _, and no other sample's. The first caption is `KEY.txt`, the others are
the field `captions`, as ingest has them. Give every sample the same fields, and a field one type or null."""

_FORMATS = ("JPEG", "PNG", "WEBP")
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
"""MPO is a JPEG of several pictures."""
_OF_A_SHARD = re.compile(r"(\d{5,})\.(tar|index\.arrow|parquet)")


def write_dataset(
    folder: str | os.PathLike[str], samples: Iterable[Given | Sample], *, name: str, shard_size: int = 1000
) -> Dataset:
    """Write a dataset of these samples, in their order, and return it opened.

    Samples of other datasets are taken as they are, with the columns that were put beside them.

    `clipstill shards verify` proves it, `cache build` and `distill` take it. Each image is decoded once, to be sure
    that it can be. A sample that is refused leaves nothing; what is interrupted is no dataset, and the same call then
    begins again. Memory grows by the keys.

    Raises:
        UserError: a sample that cannot be one, no samples at all, or a folder that holds other things.
    """
    if shard_size < 1:
        raise UserError(f"{shard_size} samples a shard", do="Ask for 1 at least")
    return write_shards(folder, _cut(samples, shard_size), name=name)


def write_shards(folder: str | os.PathLike[str], shards: Iterable[Iterable[Given | Sample]], *, name: str) -> Dataset:
    """As `write_dataset`, of samples that are cut into shards already, some of which may be empty."""
    check_dataset_name(name)
    place = Folder(folder)
    _refuse_other_things(place)
    with place.alone():
        _refuse_other_things(place)
        stage = Stage(name=name, captioned=False, whole=False)
        publish_planning(place, stage)
        _remove_records(place)
        keys = set[str]()
        try:
            for number, samples in enumerate(shards):
                publication = Publication(Spec(number, place, fingerprint([name, number])))
                made, captioned = _write_shard(publication, samples, keys)
                stage = replace(
                    stage, shards=number + 1, rows=stage.rows + made.count, captioned=stage.captioned or captioned
                )
            if not stage.rows:
                raise UserError("there are no samples to write", where=str(place))
        except UserError:
            _remove_records(place)
            _remove_shards(place, 0)
            place.delete(PLANNING)
            raise
        _remove_shards(place, stage.shards)
        publish_whole(place, stage)
        place.sweep()
    return Dataset.open(place.url)


def _cut(samples: Iterable[Given | Sample], size: int) -> Iterator[Iterable[Given | Sample]]:
    left = iter(samples)
    for first in left:
        yield chain([first], islice(left, size - 1))


def _refuse_other_things(place: Folder) -> None:
    refuse_other_things(place, "a dataset", {PLANNING})
    lists = read_lists(place)
    if lists and lists[0].settings is not None:
        raise UserError(
            "no dataset can be made here: one is being ingested", where=str(place), do="Give another folder"
        )


def _write_shard(
    publication: Publication, samples: Iterable[Given | Sample], keys: set[str]
) -> tuple[ShardRecord, bool]:
    """Publish one shard; `keys` gets those of its samples. Returns its record, and whether any sample has a caption."""
    own: list[str] = []
    captioned = False
    with publication.samples() as tar:
        for sample in samples:
            key, image, said, metadata = _given(sample) if isinstance(sample, Sample) else sample
            where = f"sample {len(keys)}, {key!r}"
            if not is_key(key):
                raise UserError(
                    "this key cannot be the name of a tar's member", where=where, do="Use letters, digits, - and _"
                )
            if key in keys:
                raise UserError("another sample has this key", where=where, do="Give each one of its own")
            extension = _extension(image, where)
            try:
                captions = [said] if isinstance(said, str) else list(said)
                tar.add(key, image, extension, captions[0] if captions else "", _fields(key, captions, metadata))
            except (AttributeError, TypeError, ValueError) as error:
                raise UserError(
                    f"its captions or fields are no text or no JSON ({one_line(str(error))})", where=where
                ) from None
            keys.add(key)
            own.append(key)
            captioned = captioned or any(caption.strip() for caption in captions)
    with publication.beside(".parquet") as path:
        ledger = {"key": pa.array(own, pa.string()), "status": pa.array(["success"] * len(own), pa.string())}
        pq.write_table(pa.table(ledger), str(path), write_page_checksum=True)
    return publication.finish(len(own), {"rows": len(own)}), captioned


def _given(sample: Sample) -> Given:
    meta = {name: value for name, value in sample.meta.items() if name not in {"key", "captions"}}
    meta |= {"caption": sample.caption} if "caption" in meta else {}
    return sample.key, sample.image_bytes, sample.captions, meta


def _extension(image: bytes, where: str) -> str:
    """What the file of an image is to end in. Raises `UserError` if it does not decode."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(image), formats=_FORMATS) as opened:
                opened.load()
                return _EXTENSIONS[str(opened.format)]
    except UnidentifiedImageError:
        raise UserError("its image is no JPEG, PNG or WebP", where=where, do="Encode it as one of them") from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything; none of it is an image
        raise UserError(
            f"its image does not decode ({one_line(str(error))})",
            where=where,
            do="Give the bytes of a JPEG, PNG or WebP",
        ) from None


def _fields(key: str, captions: Sequence[str], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in the sample's JSON. Raises `ValueError` if that is no JSON, or a field has two meanings."""
    if metadata.get("key", key) != key:
        raise ValueError(f"the field key is {metadata['key']!r}")
    if "captions" in metadata and len(captions) > 1:
        raise ValueError("several captions, and a field captions")
    found = {"captions": json.dumps(list(captions[1:]), ensure_ascii=False), **metadata, "key": key}
    json.dumps(found, allow_nan=False)
    return found


def _remove_records(place: Folder) -> None:
    for record in published_records(place).values():
        place.child(RECORDS).delete(str(record))
    if place.is_local:
        with contextlib.suppress(OSError):  # there is none
            (place.path / RECORDS).rmdir()


def _remove_shards(place: Folder, first: int) -> None:
    """Remove the files of this shard and of those after it, which an attempt has left that did not come to its end."""
    for name in place.names():
        found = _OF_A_SHARD.fullmatch(name)
        if found is not None and int(found[1]) >= first:
            place.delete(name)

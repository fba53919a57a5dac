"""clip-retrieval's embeddings in, a teacher cache out (see `clip_retrieval.py`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards import Dataset, Folder, Shard, UserError, fingerprint
from shards.executor import Executor
from shards.fingerprint import sha256_file
from shards.key_index import IndexWriter, KeyIndex
from shards.progress import Meter
from teacher_cache.dtypes import Dtype, check_dtype
from teacher_cache.exchange.claims import check_claims
from teacher_cache.exchange.clip_retrieval import Array, Partition, has_column, map_rows, metadata_rows, partitions_of
from teacher_cache.exchange.layers import ImportLayer, ImportReport, Rows, publish_facts_of, run_import, size_of
from teacher_cache.exchange.tars import SOURCES
from teacher_cache.layout import LayerFacts, TeacherFacts, refuse_no_cache, slug
from teacher_cache.views import ViewPolicy

_ROWS = 65536
"""Of metadata, read at a time."""


def import_clip_retrieval(
    folder: str,
    shards: str,
    cache: str,
    executor: Executor,
    *,
    teacher: str,
    logit_scale: float,
    image_size: int,
    kind: Literal["centre", "squash"] = "centre",
    column: str | None = None,
    key_column: str | None = None,
    dtype: Dtype = "float16",
) -> ImportReport:
    """Import the embeddings in `folder` for the dataset at `shards`; goes on where it stopped.

    `teacher` (its spec, such as `ViT-B-32:openai`), `logit_scale`, `image_size` and `kind` (how the model's
    preprocessing makes a square) say what the files do not; what is known of the model without its weights must fit.

    A sample of ours is matched by what stands in `column` of the metadata. By default that is `image_path`, and our key
    is the name of the file there, without folders and extension. With `key_column` the field of that name in our JSON
    equals it, and the default is the column of that name, if they have it. Samples are left out as `ambiguous` where
    several rows match, as `changed` where the metadata has another caption.

    Raises:
        UserError: a file is damaged or does not fit the others, or nothing matches.
        IncompleteError: shards are missing at the end.
    """
    check_dtype(dtype)
    dataset = Dataset.open(shards)
    refuse_no_cache(Folder(cache), [slug(teacher)])
    partitions = partitions_of(Path(folder))
    width = map_rows(partitions[0].images or partitions[0].texts or "").shape[1]
    check_claims(teacher, width=width, image_size=image_size, squashes=kind == "squash")
    column = column or _column(partitions, key_column)
    with Folder(cache).alone():
        source, rows, content = _index(partitions, Folder(cache), column, key_column, kind)
        name = slug(teacher)
        home = Folder(cache).child(name)
        facts = TeacherFacts(
            name=name,
            spec=teacher,
            identity={"imported": "clip-retrieval", "model": teacher, "from": content},
            embed_dim=source.width,
            logit_scale=logit_scale,
            logit_bias=None,
            image_size=image_size if partitions[0].images else None,
            has_text=partitions[0].texts is not None,
            versions={},
        )
        layers = []
        for place, (layer_kind, layer, settings) in enumerate(source.layers):
            layer_facts = LayerFacts(
                kind=layer_kind,
                name=layer,
                columns=(0,),
                teacher=facts.fingerprint,
                settings={"dtype": dtype, "precision": "", **settings},
                dataset=dataset.name,
                batch_size=0,
            )
            layers.append(ImportLayer(home.child(layer), layer_facts, place, (0, source.width)))
        publish_facts_of([(home, facts)], layers)
        return run_import(source, layers, dataset, executor, rows)


def _column(partitions: list[Partition], key_column: str | None) -> str:
    """By which column of theirs samples are matched, if nobody says it."""
    if key_column is not None and all(has_column(part.metadata, key_column) for part in partitions):
        return key_column
    return "image_path"


def _index(
    partitions: list[Partition], cache: Folder, column: str, key_column: str | None, kind: Literal["centre", "squash"]
) -> tuple[ClipRetrieval, int, str]:
    """The source, its number of rows, and a hash over all its files."""
    hashes = []
    folder = cache.child(SOURCES)
    with Meter("index", len(partitions), unit="partitions") as meter, IndexWriter() as writer:
        width = 0
        for number, part in enumerate(partitions):
            arrays = {path: map_rows(path) for path in (part.images, part.texts) if path is not None}
            rows = metadata_rows(part.metadata, column)
            for path, array in arrays.items():
                width = width or array.shape[1]
                if array.shape != (rows, width):
                    raise UserError(
                        f"it has shape {array.shape}, its metadata {rows} rows and the first file {width} columns",
                        where=path,
                        do="Run `clip-retrieval inference` again; its partitions are not written whole",
                    )
            hashes.append([sha256_file(Path(path)) for path in (*arrays, part.metadata)])
            start = 0
            for names, captions in _batches(part, column, key_column):
                writer.add(names, number, np.arange(start, start + len(names)), captions)
                start += len(names)
            meter.advance(1, items=rows)
        content = fingerprint(hashes)
        name = f"{fingerprint([content, column, key_column])}.arrow"
        with folder.staged(name) as file:
            writer.write(file)
            index = sha256_file(file)
    return ClipRetrieval(tuple(partitions), folder, name, index, width, column, key_column, kind), writer.rows, content


def _batches(part: Partition, column: str, key_column: str | None) -> Iterator[tuple[list[str], list[int]]]:
    """Key and hash of the caption of some rows at a time; without embeddings of the captions, these do not matter."""
    try:
        file = pq.ParquetFile(part.metadata)
        has_captions = part.texts is not None and "caption" in file.schema_arrow.names
        for batch in file.iter_batches(_ROWS, columns=[column, "caption"] if has_captions else [column]):
            batch.validate(full=True)
            captions = batch["caption"].to_pylist() if has_captions else [None] * len(batch)
            yield [_key(value, key_column) for value in batch[column].to_pylist()], [_hash(text) for text in captions]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"not readable as Parquet ({error})", where=part.metadata, do="Restore it") from None


def _hash(caption: Any) -> int:
    """Of 64 bits, signed; 0 where it is not known."""
    return 0 if caption is None else int.from_bytes(blake2b(str(caption).encode(), digest_size=8).digest(), signed=True)


def _key(value: Any, key_column: str | None) -> str:
    text = "" if value is None else str(value)
    return text if key_column is not None else text.rsplit("/", 1)[-1].partition(".")[0]


@dataclass(frozen=True)
class ClipRetrieval:
    """The source: column 0 the view, if images were embedded; then the caption, if texts were.

    The index has a hash of each row's caption in place of a size.
    """

    partitions: tuple[Partition, ...]
    folder: Folder
    index: str
    sha256: str
    width: int
    column: str
    key_column: str | None
    kind: Literal["centre", "squash"]
    _open: dict[str, Array] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**{name: value for name, value in self.__dict__.items() if name != "_keys"}, "_open": {}}

    @cached_property
    def _keys(self) -> KeyIndex:
        return KeyIndex(self.folder.fetch(self.index, self.sha256))

    @property
    def policy(self) -> ViewPolicy:
        return ViewPolicy(kind=self.kind)

    @property
    def layers(self) -> list[tuple[Literal["views", "captions"], str, dict[str, Any]]]:
        """Kind, name and settings of each layer, in the order of the columns."""
        found: list[tuple[Literal["views", "captions"], str, dict[str, Any]]] = []
        if self.partitions[0].images:
            found.append(("views", "views-000-000", {"policy": self.policy.identity()}))
        if self.partitions[0].texts:
            found.append(("captions", "captions-txt", {"source": {"kind": "txt", "count": 1}}))
        return found

    def _array(self, path: str) -> Array:
        if path not in self._open:
            self._open[path] = map_rows(path)
        return self._open[path]

    def gather(self, shard: Shard, scratch: Path) -> Rows:
        paths = [[path for path in (part.images, part.texts) if path is not None] for part in self.partitions]
        embeddings = np.lib.format.open_memmap(
            scratch / "rows.npy", "w+", np.float32, (len(self.layers), shard.count, self.width)
        )
        params = np.zeros((shard.count, 1), self.policy.dtype)
        counts: Counter[str] = Counter()
        kept = []
        for row in range(shard.count):
            name = shard.keys[row] if self.key_column is None else shard.meta(row).get(self.key_column)
            found = self._keys.find(str(name)) if name is not None else []
            if not found:
                counts["absent"] += 1
                continue
            counts["claimed"] += len(found)
            if len(found) > 1:
                counts["ambiguous"] += 1
                continue
            part, start, caption = found[0]
            if caption not in (0, _hash(shard.caption(row))):
                counts["changed"] += 1
                continue
            for column, path in enumerate(paths[part]):
                embeddings[column, row] = _sound(self._array(path)[start], path, start)
            if self.partitions[part].images:
                params[row] = self.policy.pack([self.policy.draw(shard.keys[row], 0, *size_of(shard, row))])
            kept.append(row)
        self._open.clear()
        keys = [shard.keys[row] for row in kept]
        return Rows(keys, embeddings, np.array(kept, np.int64), params, [[] for _ in kept], counts)


def _sound(row: Array, path: str, number: int) -> npt.NDArray[np.float32]:
    wide = row.astype(np.float32)
    if not np.isfinite(wide).all() or not wide.any():
        raise UserError(f"row {number} is zero or not finite", where=path, do="Embed it again")
    return wide

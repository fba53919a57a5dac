"""What a teacher cache is on disk.

    CACHE/
      <teacher>/
        teacher.json                    who the teacher is: weights' hash, preprocessing, tokenizer, scale
        views-000-003/                  a layer: views 0 to 3 of every image
          layer.json                    policy, dtype, dataset, batch size
          00000.arrow                   one file a shard, rows in the tar's order
          _records/                     what is done, as in every stage
        captions-txt/                   a layer: the captions in KEY.txt
        captions-json-synthetic/        a layer: other captions
        ...

Layers only ever get added: more views are another layer beside the first, another teacher another folder. A teacher
without an image tower has no views, one without a text tower no captions.

A file is uncompressed Arrow IPC with one record batch, so each column lies in one piece and reading one view touches
only that view's bytes:

    view_kkk or caption_kkk     fixed-size list of D numbers (`dtypes.py`), unit norm before rounding
    ..._scale                   float32, of int8 only
    params_kkk                  how view k was made: packed bytes, `ViewPolicy.dtype`
    text_kkk                    the caption, where the shards do not have it
    key                         of each row

The schema's metadata holds `keys`, the digest of the rows' keys, and `layer`, the layer's fingerprint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ConfigDict

from shards import Folder, UserError, fingerprint
from shards.fingerprint import first_difference
from shards.places import refuse_other_things, what_is_at
from shards.typed_json import parsed
from teacher_cache.dtypes import DTYPES, Dtype, Stored, arrow_type
from teacher_cache.views.policy import VIEWS_VERSION, ViewPolicy

CACHE_SCHEMA = 2
TEACHER = "teacher.json"
LAYER = "layer.json"

Kind = Literal["views", "captions"]

_AS_WRITTEN = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """`teacher.json`. `identity` decides what the embeddings are; `spec` is how to load the teacher again.

    `embed_dim` is D; `logit_scale` a multiplier (100, not 4.6), `logit_bias` SigLIP's or None; `image_size` what the
    teacher sees, None without an image tower. `versions` are the libraries that ran it: kept for the record, not
    compared, since `verify` measures what they change.
    """

    name: str
    spec: str
    identity: dict[str, Any]
    embed_dim: int
    logit_scale: float
    logit_bias: float | None
    image_size: int | None
    has_text: bool
    versions: dict[str, str]

    __pydantic_config__ = _AS_WRITTEN

    def check(self, _folder: str) -> None:
        """Raises `ValueError` for what no teacher can be."""
        if self.embed_dim < 1:
            raise ValueError(f"its embeddings have {self.embed_dim} numbers")

    def compared(self) -> dict[str, Any]:
        """What must be the same in all that is made by one teacher."""
        # The scale is the exponential of a weight: its last digits are the library's.
        scales = {"logit_scale": self.logit_scale, "logit_bias": self.logit_bias}
        rounded = {name: None if value is None else float(f"{value:.6g}") for name, value in scales.items()}
        return {**self.identity, **rounded, "embed_dim": self.embed_dim}

    @property
    def fingerprint(self) -> str:
        return fingerprint({"schema": CACHE_SCHEMA, **self.compared()})


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """`layer.json`: what every file of a layer holds.

    `columns` are view indices (kind "views") or caption numbers (kind "captions"). `settings` is what else decides the
    bytes: "dtype", "precision" of the forward ("" for imported rows), and "policy" (`ViewPolicy.identity`) or "source"
    (`CaptionSource.identity`). `dataset` is the dataset's name and `batch_size` what the forward ran with (0:
    imported); neither is part of the fingerprint.
    """

    kind: Kind
    name: str
    columns: tuple[int, ...]
    teacher: str
    settings: dict[str, Any]
    dataset: str
    batch_size: int

    __pydantic_config__ = _AS_WRITTEN

    def check(self, folder: str) -> None:
        """Raises `ValueError` for what no layer in a folder of this name can be."""
        if self.name != folder or not self.name.startswith(f"{self.kind}-"):
            raise ValueError(f"it is of {self.kind} called {self.name!r}")
        if not self.columns or self.columns[0] < 0 or list(self.columns) != sorted(set(self.columns)):
            raise ValueError(f"it has columns {list(self.columns)}")
        decides = {"dtype": str, "precision": str, "policy" if self.kind == "views" else "source": dict}
        for name, kind in decides.items():
            if not isinstance(self.settings.get(name), kind):
                raise ValueError(f"its {name} is {self.settings.get(name)!r}")  # noqa: TRY004 - of the file
        if self.kind == "views" and self.settings["policy"].get("version") == VIEWS_VERSION:
            try:
                ViewPolicy.from_identity(self.settings["policy"])
            except UserError as error:
                raise ValueError(error.problem) from None
        source = self.settings.get("source", {"kind": "txt", "count": 1})
        if source.get("kind") not in {"txt", "json", "table"} or type(source.get("count")) is not int:
            raise ValueError(f"its source is {source}")
        if self.dtype not in DTYPES:
            raise ValueError(f"its dtype is {self.dtype!r}")

    @property
    def dtype(self) -> Dtype:
        dtype: Dtype = self.settings["dtype"]
        return dtype

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            {
                "schema": CACHE_SCHEMA,
                "kind": self.kind,
                "columns": list(self.columns),
                "teacher": self.teacher,
                "settings": self.settings,
            }
        )

    def shard_fingerprint(self, parent: str) -> str:
        """The fingerprint that a shard's record must carry, given the content of the shard it was made from."""
        return fingerprint([self.fingerprint, parent])

    def column(self, index: int) -> str:
        return f"{'view' if self.kind == 'views' else 'caption'}_{index:03d}"


Facts = TypeVar("Facts", TeacherFacts, LayerFacts)


def views_layer_name(columns: Sequence[int]) -> str:
    return f"views-{columns[0]:03d}-{columns[-1]:03d}"


def slug(text: str) -> str:
    """A folder name for a teacher spec: `ViT-B-32:laion2b_s34b_b79k` → `vit-b-32-laion2b_s34b_b79k`."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-") or "teacher"


def publish_facts(folder: Folder, name: str, facts: TeacherFacts | LayerFacts) -> None:
    folder.publish(name, json.dumps({"schema": CACHE_SCHEMA, **asdict(facts)}, indent=1).encode())


def teacher_names(cache: Folder) -> list[str]:
    """The teachers of a cache, by their folders; none of a dataset, which is not looked through."""
    if (cache.is_local and cache.path.is_file()) or cache.exists("dataset.json"):
        return []
    return [name for name in cache.names() if cache.child(name).exists(TEACHER)]


def no_cache(folder: Folder) -> UserError:
    """That no cache is at a folder where one is to be read."""
    told = f"no teacher cache here: this is {what_is_at(folder)}"
    return UserError(told, where=str(folder), do="Give what `clipstill cache build` wrote")


def refuse_no_cache(cache: Folder, names: Iterable[str] = ()) -> None:
    """Raise `UserError` unless a cache can be written here: nothing is here, or a cache, or what a killed build of
    teachers with these names has begun.
    """
    refuse_other_things(cache, "a cache", {"_sources", *names, *teacher_names(cache)})


def read_teacher(folder: Folder) -> TeacherFacts | None:
    """The teacher of a cache folder, None if the folder is not one. Raises `UserError` if its file is damaged."""
    return _read(folder, TEACHER, TeacherFacts)


def read_layer(folder: Folder) -> LayerFacts | None:
    """The layer of a folder, None if it is not one. Raises `UserError` if its file is damaged."""
    return _read(folder, LAYER, LayerFacts)


def read_layers(folder: Folder, kind: Kind) -> list[LayerFacts]:
    """The layers of one kind of a teacher's folder: views by their first column, captions by name."""
    # Filtered here: an object store asked for a prefix names files only, no folders.
    found = (read_layer(folder.child(name)) for name in folder.names() if name.startswith(f"{kind}-"))
    return sorted((layer for layer in found if layer is not None), key=lambda layer: (layer.columns, layer.name))


def _read(folder: Folder, name: str, kind: type[Facts]) -> Facts | None:
    try:
        text = folder.read(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        data = json.loads(text)
        schema = data.pop("schema", None) if isinstance(data, dict) else None
        if schema == CACHE_SCHEMA:
            facts = parsed(kind, json.dumps(data, allow_nan=False))
            facts.check(folder.url.rpartition("/")[2])
            return facts
    except (ValueError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise UserError(f"{name} is damaged ({told})", where=str(folder), do="Restore it, or build again") from None
    raise UserError(
        f"{name} has schema {schema}, this version reads {CACHE_SCHEMA}",
        where=str(folder),
        do="Build into another folder",
    )


def refuse_another(where: Folder, what: str, old: dict[str, Any], new: dict[str, Any], do: str) -> None:
    """Raise `UserError` naming the first difference between two identities, if there is one."""
    difference = first_difference(old, json.loads(json.dumps(new)))
    if difference:
        raise UserError(f"{what}: {difference}", where=str(where), do=do)


def layer_table(
    layer: LayerFacts,
    keys: Sequence[str],
    embeddings: Sequence[Stored],
    *,
    params: Sequence[npt.NDArray[np.void]] = (),
    texts: Sequence[Sequence[str]] = (),
) -> pa.Table:
    """The content of one file; every sequence has one entry a column of the layer, in order.

    `embeddings`: what `dtypes.store` made of (rows, D) float32 of unit norm; `params`: (rows,) of `ViewPolicy.dtype`,
    of views; `texts`: the captions, where the shards do not have them.
    """
    columns: dict[str, pa.Array] = {}
    scales: dict[str, pa.Array] = {}
    # The embeddings first and together: they lie at equal distances, so one gather serves several views.
    for index, stored in zip(layer.columns, embeddings, strict=True):
        name = layer.column(index)
        values = pa.array(np.ascontiguousarray(stored.values).reshape(-1), arrow_type(layer.dtype))
        columns[name] = pa.FixedSizeListArray.from_arrays(values, stored.values.shape[1])
        if stored.scales is not None:
            scales[f"{name}_scale"] = pa.array(stored.scales)
    columns |= scales
    for index, packed in zip(layer.columns, params, strict=bool(params)):
        width = packed.dtype.itemsize
        columns[f"params_{index:03d}"] = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(packed), [None, pa.py_buffer(np.ascontiguousarray(packed).tobytes())]
        )
    for index, captions in zip(layer.columns, texts, strict=bool(texts)):
        columns[f"text_{index:03d}"] = pa.array(captions, pa.string())
    columns["key"] = pa.array(keys, pa.string())
    table = pa.table(columns)
    return table.replace_schema_metadata({"keys": fingerprint(list(keys)), "layer": layer.fingerprint})


def write_layer_file(path: str, table: pa.Table) -> None:
    """One record batch, uncompressed."""
    with pa.ipc.new_file(path, table.schema) as sink:
        sink.write_table(table.combine_chunks())

"""What a teacher cache is on disk.

    CACHE/
      <teacher>/
        teacher.json                    who the teacher is: weights' hash, preprocessing, tokenizer, scale
        views-000-003/                  a layer: views 0 to 3 of every image
          layer.json                    policy, dtype, dataset, fingerprint
          00000.arrow                   one file a shard, rows in the tar's order
          _records/                     what is done, as in every stage
        captions-txt/                   a layer: the captions in KEY.txt
          ...

Layers only ever get added: more views are another layer beside the first, another teacher another folder.

A file is uncompressed Arrow IPC with one record batch, so each column lies in one piece and reading one view touches
only that view's bytes. View layers have `key`, then for each view k `view_kkk` (fixed-size list of D float16, unit
norm before rounding), `crop_kkk` (left, top, width, height as float32 fractions of the upright image) and `flip_kkk`;
caption layers have `key` and `caption_000`. The schema's metadata holds `keys`, the digest of the shard's keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards import Folder, Shard, UserError, fingerprint
from shards.fingerprint import first_difference
from teacher_cache.views import View

CACHE_SCHEMA = 1
TEACHER = "teacher.json"
LAYER = "layer.json"

Kind = Literal["views", "captions"]


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """`teacher.json`. `identity` decides what the embeddings are; `spec` is how to load the teacher again.

    `embed_dim` is D; `logit_scale` a multiplier (100, not 4.6), `logit_bias` SigLIP's or None. `versions` are the
    libraries that ran it: kept for the record, not compared, since `verify` measures what they change.
    """

    name: str
    spec: str
    identity: dict[str, Any]
    embed_dim: int
    logit_scale: float
    logit_bias: float | None
    versions: dict[str, str]

    @property
    def fingerprint(self) -> str:
        return fingerprint({"schema": CACHE_SCHEMA, **self.identity})


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """`layer.json`: what every file of a layer holds.

    `columns` are view indices (kind "views") or caption numbers (kind "captions"); `settings` is what else decides the
    bytes (view policy or caption source, dtype, forward precision); `dataset` the dataset's name, for messages.
    """

    kind: Kind
    name: str
    columns: tuple[int, ...]
    teacher: str
    settings: dict[str, Any]
    dataset: str

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


def slug(text: str) -> str:
    """A folder name for a teacher spec: `ViT-B-32:laion2b_s34b_b79k` → `vit-b-32-laion2b_s34b_b79k`."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-") or "teacher"


def publish_facts(folder: Folder, name: str, facts: TeacherFacts | LayerFacts) -> None:
    folder.publish(name, json.dumps({"schema": CACHE_SCHEMA, **asdict(facts)}, indent=1).encode())


def read_teacher(folder: Folder) -> TeacherFacts | None:
    """The teacher of a cache folder, None if the folder is not one."""
    data = _read(folder, TEACHER)
    return None if data is None else TeacherFacts(**data)


def read_layer(folder: Folder) -> LayerFacts | None:
    data = _read(folder, LAYER)
    return None if data is None else LayerFacts(**{**data, "columns": tuple(data["columns"])})


def read_layers(folder: Folder, kind: Kind) -> list[LayerFacts]:
    """The layers of one kind of a teacher's folder, by their first column."""
    # Filtered here: an object store asked for a prefix names files only, no folders.
    found = (read_layer(folder.child(name)) for name in folder.names() if name.startswith(f"{kind}-"))
    return sorted((layer for layer in found if layer is not None), key=lambda layer: layer.columns)


def _read(folder: Folder, name: str) -> dict[str, Any] | None:
    try:
        data: dict[str, Any] = json.loads(folder.read(name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    schema = data.pop("schema", None)
    if schema != CACHE_SCHEMA:
        raise UserError(f"{name} has schema {schema}, this version reads {CACHE_SCHEMA}", where=str(folder))
    return data


def refuse_another(where: Folder, what: str, old: dict[str, Any], new: dict[str, Any], do: str) -> None:
    """Raise `UserError` naming the first difference between two identities, if there is one."""
    difference = first_difference(old, new)
    if difference:
        raise UserError(f"{what}: {difference}", where=str(where), do=do)


def embedding_column(kind: Kind, index: int) -> str:
    return f"{'view' if kind == 'views' else 'caption'}_{index:03d}"


def layer_table(
    layer: LayerFacts,
    shard: Shard,
    embeddings: Sequence[npt.NDArray[np.float16]],
    views: Sequence[Sequence[View]],
) -> pa.Table:
    """The content of one file. `embeddings`: one (rows, D) array a column; `views`: as many lists of rows, or none."""
    columns: dict[str, pa.Array] = {"key": pa.array(shard.keys, pa.string())}
    for place, index in enumerate(layer.columns):
        flat = np.ascontiguousarray(embeddings[place])
        columns[embedding_column(layer.kind, index)] = pa.FixedSizeListArray.from_arrays(
            pa.array(flat.reshape(-1), pa.float16()), flat.shape[1]
        )
        if views:
            crops = np.array([view[:4] for view in views[place]], np.float32).reshape(-1)
            columns[f"crop_{index:03d}"] = pa.FixedSizeListArray.from_arrays(pa.array(crops), 4)
            columns[f"flip_{index:03d}"] = pa.array([view.flip for view in views[place]], pa.bool_())
    table = pa.table(columns)
    return table.replace_schema_metadata({"keys": shard.keys_digest, "layer": layer.fingerprint})

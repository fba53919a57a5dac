from __future__ import annotations

import hashlib
import itertools
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from shards import FileEntry, Folder, read_records


@pytest.fixture(scope="session", autouse=True)
def _quiet(one_thread: None) -> None:
    """Every test here computes on one thread."""


@pytest.fixture(scope="session")
def forge() -> Callable[..., None]:
    """`forge(layer, shard, change, **options)`: rewrite a file of a layer, as Arrow's options say, and its record, so
    that its hash is right.
    """

    def rewrite(layer: str | Path, shard: int, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
        folder = Folder(layer)
        record = read_records(folder)[shard]
        path = folder.path / f"{shard:05d}.arrow"
        with pa.memory_map(str(path)) as source:
            table = change(pa.ipc.open_file(source).read_all())
        written = pa.ipc.IpcWriteOptions(**options)
        with pa.ipc.new_file(str(path.with_suffix(".new")), table.schema, options=written) as sink:
            sink.write_table(table.combine_chunks())
        path.with_suffix(".new").replace(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        forged = replace(record, files=(FileEntry(path.name, path.stat().st_size, digest),))
        folder.child("_records").delete(str(record.name))
        folder.child("_records").publish(str(forged.name), forged.to_json().encode())

    return rewrite


@pytest.fixture(scope="session")
def stored() -> Callable[..., pa.Table]:
    """`stored(cache, layer, shard, teacher="teach")`: a file of a layer, read with pyarrow alone."""

    def read(cache: str | Path, layer: str, shard: int, teacher: str = "teach") -> pa.Table:
        with pa.memory_map(f"{cache}/{teacher}/{layer}/{shard:05d}.arrow") as source:
            return pa.ipc.open_file(source).read_all()

    return read


_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def python_teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """`python_teacher(source)`: an importable module with a class Mine; returns the spec of that teacher."""
    folder = tmp_path_factory.mktemp("modules")

    def save(source: str) -> str:
        name = f"embedders_{next(_NUMBERS)}"
        (folder / f"{name}.py").write_text("import numpy as np\nimport torch\n" + textwrap.dedent(source))
        return f"python:{name}:Mine"

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield save


LINEAR = """
class Mine:
    image_size = {size}
    identity = {{"seed": {seed}}}
    logit_scale = {scale}

    def embed_images(self, pixels):
        weights = np.random.default_rng({seed}).normal(size=({size} * {size} * 3, {width}))
        return (pixels.cpu().numpy().reshape(len(pixels), -1) / 255 - 0.5) @ weights

    def embed_texts(self, texts):
        weights = np.random.default_rng({seed} + 1).normal(size=(256, {width}))
        return np.stack([np.bincount(np.frombuffer(t.encode(), np.uint8), minlength=256) @ weights for t in texts])
"""


@pytest.fixture(scope="session")
def linear_teacher(python_teacher: Callable[[str], str]) -> Callable[..., str]:
    """`linear_teacher(size=8, width=6, seed=0, scale=50.0, without=())`: a teacher that is a matrix a tower.

    `without` names the methods that it lacks.
    """

    def save(**options: Any) -> str:
        chosen = {"size": 8, "width": 6, "seed": 0, "scale": 50.0, **options}
        lacking = "".join(f"    {method} = None\n" for method in chosen.pop("without", ()))
        return python_teacher(LINEAR.format(**chosen) + lacking)

    return save

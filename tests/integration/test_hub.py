"""Datasets on a hub, adopted where they are and packed from, through `huggingface_hub`; stores without a package."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards import Dataset, UserError
from shards.adopt import find_tars
from shards.side_table import SideTable
from tests.integration.hub import Hub, hub


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Two tars of three pairs, and Parquet with nothing but six images."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "data").mkdir()
    for part in range(2):
        with tarfile.open(folder / "data" / f"{part:05d}.tar", "w") as tar:
            for number in range(3 * part, 3 * part + 3):
                for ending, data in (("jpg", jpeg(number)), ("txt", f"no. {number}".encode())):
                    entry = tarfile.TarInfo(f"{number:05d}.{ending}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    images = [{"bytes": jpeg(number), "path": f"{number}.jpg"} for number in range(6)]
    pq.write_table(pa.table({"image": images}), folder / "data" / "images.parquet", row_group_size=2)
    with hub(folder) as found:
        yield found


@pytest.fixture
def run(served: Hub, tmp_path: Path) -> Iterator[object]:
    """The command in a process of its own: the library reads the endpoint when it is imported."""
    names = {
        "HF_ENDPOINT": served.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "CLIPSTILL_CACHE": str(tmp_path / "kept"),
    }
    # Of a user without a token; whose proxy, if any, is not asked for this machine.
    names["PYTHONPATH"] = str(Path(__file__).parents[2])
    environment = {**os.environ, **names, "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}

    def run(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "clipstill", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    yield run
    assert served.strange == []


def test_tars_on_a_hub_are_read_where_they_are(served: Hub, run: object, tmp_path: Path) -> None:
    assert callable(run)
    code, said, error = run("shards", "adopt", "hf://datasets/user/name@v1/data/", "--out", "there", "--in-process")
    assert (code, said.splitlines()[0]) == (0, "6 samples in 2 tars: 6 adopted, 0 refused"), error
    code, said, _ = run("shards", "cat", "there", "00004", "--image", "4.jpg")
    assert (code, json.loads(said)["caption"]) == (0, "no. 4")
    assert (tmp_path / "4.jpg").read_bytes() == jpeg(4)
    assert json.loads(said)["tar"] == "hf://datasets/user/name@v1/data/00001.tar"
    before = served.sent
    assert run("shards", "cat", "there", "00003")[0] == 0
    assert served.sent == before, "its copy is there"
    assert run("shards", "verify", "there")[0] == 0
    # What is written there later is another tar.
    place = served.folder / "data" / "00000.tar"
    sound = place.read_bytes()
    try:
        place.write_bytes(sound + b"\0" * 512)
        code, said, _ = run("shards", "verify", "there")
        assert (code, "00000.tar has" in said, "shards verify" not in said) == (1, True, True)
    finally:
        place.write_bytes(sound)


def test_images_of_a_hubs_parquet_are_packed(run: object, tmp_path: Path) -> None:
    assert callable(run)
    words = ["--no-captions", "--name", "set", "--out", "packed", "--resize-mode", "no", "--in-process"]
    code, said, error = run("shards", "pack", "hf://datasets/user/name@v1/data/images.parquet", *words)
    assert (code, said.splitlines()[0]) == (0, "6 rows: 6 samples, 0 failed"), error
    dataset = Dataset.open(tmp_path / "packed")
    for number, sample in enumerate(dataset):
        wanted = np.asarray(Image.open(io.BytesIO(jpeg(number))), np.int16)
        assert np.abs(np.asarray(sample.image, np.int16) - wanted).mean() < 12


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (
            "hf://datasets/user/nothing/data/*.tar",
            "is not there (datasets/user/nothing/data/*.tar (repository not found)",
        ),
        ("hf://datasets/user/name@v9/data/00000.tar", "(revision not found)"),
        ("hf://datasets/user/name/data/7.tar", "is not there"),
        ("hf://datasets/user/name/data/*.zip", "no tar is there"),
    ],
)
def test_what_is_not_on_a_hub_is_one_line(run: object, url: str, told: str) -> None:
    assert callable(run)
    code, said, error = run("shards", "adopt", url, "--out", "there")
    assert (code, said, error.count("\n")) == (2, "", 1)
    assert error.startswith(f"clipstill: error: {url}: ")
    assert told in error


@pytest.mark.parametrize(
    ("url", "package"),
    [("gs://b/x.tar", "gcsfs"), ("az://b/x.tar", "adlfs"), ("hf://datasets/a/b/x.tar", "huggingface_hub")],
)
def test_a_store_without_its_package_says_which(monkeypatch: pytest.MonkeyPatch, url: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    # What another test of this process has used stays registered, package or no package.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url.partition(":")[0], raising=False)
    for use in (lambda: find_tars([url]), lambda: Dataset.open(url), lambda: SideTable.read(url)):
        with pytest.raises(UserError, match=f"pip install {package}"):
            use()

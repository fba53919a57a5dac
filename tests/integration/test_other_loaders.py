"""Other people's loaders read our shards, and we read what other people's writers make: every sample, byte for byte."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipstill.main import main
from shards import Dataset, InProcess, verify_dataset
from shards.adopt import Adopted, AdoptSettings, adopt, find_tars
from tests.integration import others

ROOT = Path(__file__).parents[2]
CC12M = ROOT.parent / "shared" / "data" / "metadata" / "cc12m-sample.tar"
"""A shard of 32 published pairs, which may lie beside the repository."""

Sample = tuple[bytes, str, dict[str, Any]]
"""Encoded image, caption, metadata."""

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # webdataset's own open files
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def picture(seed: int) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((40, 32)).save(sink, "JPEG")
    return sink.getvalue()


SAMPLES: dict[str, Sample] = {
    f"{number:09d}": (picture(number), f"picture {number}, é", {"key": f"{number:09d}", "width": 40, "n": number})
    for number in range(10)
}


def everything(dataset: Dataset) -> dict[str, Sample]:
    found: dict[str, Sample] = {}
    for shard in dataset.shards:
        for row, key in enumerate(shard.keys):
            found[key] = (shard.image_bytes(row), shard.caption(row), shard.meta(row))
    return found


def adopted(out: Path, *patterns: Path) -> Adopted:
    settings = AdoptSettings(patterns=tuple(map(str, patterns)), out=str(out))
    return adopt(settings, find_tars(settings.patterns), InProcess())


def tars_of(dataset: Dataset) -> list[str]:
    places = [shard.record.file(".tar").place(shard.folder) for shard in dataset.shards]
    return [str(folder.path / name) for folder, name in places]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Theirs, read by us.


def by_webdataset(folder: Path) -> None:
    import webdataset  # noqa: PLC0415

    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=4, verbose=0) as sink:
        for key, (image, caption, meta) in SAMPLES.items():
            sink.write({"__key__": key, "jpg": image, "txt": caption, "json": meta})


def by_tar_writer(folder: Path) -> None:
    import webdataset  # noqa: PLC0415

    with webdataset.TarWriter(f"{folder}/one.tar") as sink:
        for key, (image, caption, meta) in SAMPLES.items():
            sink.write({"__key__": key, "jpg": image, "txt": caption, "json": meta})


def by_img2dataset(folder: Path) -> None:
    # Otherwise a library that it imports asks the web whether there is a newer one.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset.writer import WebDatasetSampleWriter  # noqa: PLC0415

    schema = pa.schema([("key", pa.string()), ("width", pa.int64()), ("n", pa.int64())])
    for shard in range(2):
        sink = WebDatasetSampleWriter(shard, str(folder), True, 5, schema, "jpg")
        for key, (image, caption, meta) in list(SAMPLES.items())[5 * shard : 5 * shard + 5]:
            sink.write(image, key, caption, dict(meta))
        sink.close()


def by_gnu_tar(form: str, *, in_order: bool) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        files = folder / "files"
        files.mkdir()
        for key, (image, caption, meta) in SAMPLES.items():
            (files / f"{key}.jpg").write_bytes(image)
            (files / f"{key}.txt").write_text(caption, encoding="utf-8")
            (files / f"{key}.json").write_text(json.dumps(meta))
        names = sorted(path.name for path in files.iterdir())
        if not in_order:
            random.Random(3).shuffle(names)
        command = ["tar", f"--format={form}", "-cf", f"{folder}/one.tar", "-C", str(files)]
        # A folder by its name, as one does by hand, has `./` before all names and itself as a member.
        what = ["--sort=name", "."] if in_order else names
        subprocess.run([*command, *what], check=True)
        for path in files.iterdir():
            path.unlink()

    return write


WRITERS: dict[str, Callable[[Path], None]] = {
    "ShardWriter": by_webdataset,
    "TarWriter": by_tar_writer,
    "img2dataset": by_img2dataset,
    **{f"{form} in order": by_gnu_tar(form, in_order=True) for form in ("gnu", "pax", "ustar")},
    **{f"{form} in any order": by_gnu_tar(form, in_order=False) for form in ("gnu", "pax", "ustar")},
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_others_write_is_read_sample_by_sample(writer: str, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    WRITERS[writer](tmp_path / "tars")
    found = adopted(tmp_path / "out", tmp_path / "tars")
    assert (found.rows, found.refused.total(), found.others.total()) == (len(SAMPLES), 0, 0)
    dataset = Dataset.open(str(tmp_path / "out"))
    assert everything(dataset) == SAMPLES
    assert verify_dataset(str(tmp_path / "out")).problems == ()
    if "any order" in writer:
        return  # webdataset takes neighbours only for a sample
    by_them = others.webdataset_samples(tars_of(dataset))
    assert {Path(key).name: (parts["jpg"], parts["txt"]) for key, parts in by_them.items()} == {
        key: (sha(image), sha(caption.encode())) for key, (image, caption, _) in SAMPLES.items()
    }


# Ours, and adopted ones, read by them.


@pytest.fixture(scope="module", params=["ours", "adopted"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three shards, packed by our command, or adopted as webdataset wrote them."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "adopted":
        by_webdataset(folder)
        adopted(folder / "out", folder)
    else:
        table = {
            "image": [image for image, _, _ in SAMPLES.values()],
            "text": [text for _, text, _ in SAMPLES.values()],
        }
        pq.write_table(pa.table(table), folder / "list.parquet")
        options = ["--name", "set", "--shard-size", "4", "--resize-mode", "no", "--skip-reencode", "--in-process"]
        assert main(["shards", "pack", str(folder / "list.parquet"), *options, "--out", str(folder / "out")]) == 0
    return Dataset.open(str(folder / "out"))


def pairs(dataset: Dataset) -> list[tuple[str, str]]:
    return sorted(others.tensors(image, caption) for image, caption, _ in everything(dataset).values())


def digests(dataset: Dataset) -> dict[str, tuple[str, str]]:
    return {key: (sha(image), sha(caption.encode())) for key, (image, caption, _) in everything(dataset).items()}


def test_webdataset_reads_every_sample(dataset: Dataset) -> None:
    by_them = others.webdataset_samples(tars_of(dataset))
    assert {key: (parts["jpg"], parts["txt"]) for key, parts in by_them.items()} == digests(dataset)
    assert all(parts.keys() == {"jpg", "txt", "json"} for parts in by_them.values())
    assert len(by_them) == len(SAMPLES)


def test_open_clips_pipeline_reads_every_sample(dataset: Dataset) -> None:
    assert others.open_clip_pairs(tars_of(dataset), len(SAMPLES), train=False) == pairs(dataset)


def test_who_reads_the_ledger_with_the_tar_finds_every_sample(dataset: Dataset) -> None:
    """As scripts on img2dataset's output do: NNNNN.parquet for the rows, `KEY.jpg` of NNNNN.tar for each success."""
    found = {}
    for shard, tar in zip(dataset.shards, tars_of(dataset), strict=True):
        rows = pq.read_table(dataset.folder.path / f"{shard.id:05d}.parquet").to_pylist()
        with tarfile.open(tar) as archive:
            for row in rows:
                assert row["status"] == "success"
                members = [archive.extractfile(f"{row['key']}.{kind}") for kind in ("jpg", "txt", "json")]
                image, text, meta = (member.read() for member in members if member is not None)
                found[row["key"]] = (image, text.decode(), json.loads(meta))
                if "caption" in row:  # an adopted tar's ledger has no more than what was decided
                    assert (row["caption"], row["sha256"]) == (text.decode(), sha(image))
    assert found == everything(dataset)
    if dataset.name == "set":
        stats = json.loads((dataset.folder.path / "00000_stats.json").read_text())
        assert (stats["count"], stats["successes"], stats["status_dict"]) == (4, 4, {"success": 4})


@pytest.mark.skipif(not CC12M.exists(), reason="there is no ../shared/data/metadata/cc12m-sample.tar")
def test_a_published_shard_is_read_as_its_own_loaders_read_it(tmp_path: Path) -> None:
    assert adopted(tmp_path / "out", CC12M).refused.total() == 0
    dataset = Dataset.open(str(tmp_path / "out"))
    with tarfile.open(CC12M) as tar:
        members = {entry.name: tar.extractfile(entry) for entry in tar}
        wanted = {name: member.read() for name, member in members.items() if member is not None}
    assert len(wanted) == 3 * len(dataset) == 96
    for key, (image, caption, meta) in everything(dataset).items():
        assert (image, caption.encode()) == (wanted[f"{key}.jpg"], wanted[f"{key}.txt"])
        assert meta == json.loads(wanted[f"{key}.json"]) | {"key": key}
    assert verify_dataset(str(tmp_path / "out")).problems == ()
    by_them = others.webdataset_samples([str(CC12M)])
    assert {key: (parts["jpg"], parts["txt"]) for key, parts in by_them.items()} == digests(dataset)
    assert others.open_clip_pairs([str(CC12M)], 32, train=False) == pairs(dataset)


# The same under other versions of webdataset than the one that is installed; these need a package index.


@pytest.fixture(scope="module")
def with_webdataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`with_webdataset("1.*", function, **arguments)`: the result of a function of `others` under that version."""

    def call(version: str, function: str, **arguments: Any) -> Any:
        place = tmp_path_factory.getbasetemp() / f"webdataset-{version.rstrip('.*')}"
        if not place.exists():
            uv = str(Path(sys.executable).with_name("uv"))
            options = ["--quiet", "--no-deps", "--python", sys.executable, "--target", str(place)]
            command = [uv, "pip", "install", *options, f"webdataset=={version}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode:
                pytest.skip(f"webdataset {version} cannot be had: {' '.join(done.stderr.split())[-200:]}")
        path = {**os.environ, "PYTHONPATH": f"{place}:{ROOT}"}
        command = [sys.executable, others.__file__, function, json.dumps(arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return call


@pytest.mark.long
@pytest.mark.parametrize("version", ["0.2.86", "0.2.111", "1.*"])
def test_each_generation_of_webdataset_reads_every_sample(
    version: str, dataset: Dataset, with_webdataset: Callable[..., Any]
) -> None:
    assert with_webdataset(version, "version").startswith(version.rstrip("*"))
    by_them = with_webdataset(version, "webdataset_samples", tars=tars_of(dataset))
    assert {key: (parts["jpg"], parts["txt"]) for key, parts in by_them.items()} == digests(dataset)


@pytest.mark.long
def test_open_clips_pipeline_of_training_reads_every_sample(
    dataset: Dataset, with_webdataset: Callable[..., Any]
) -> None:
    """With the webdataset that open_clip asks for: of later ones its reader refuses what they put between shards."""
    by_them = with_webdataset("0.2.86", "open_clip_pairs", tars=tars_of(dataset), samples=len(SAMPLES), train=True)
    # Whole batches only: what is missing to the last one begins the next round.
    assert len(by_them) == 12
    assert {tuple(pair) for pair in by_them} <= set(pairs(dataset))
    assert len({tuple(pair) for pair in by_them}) >= 8

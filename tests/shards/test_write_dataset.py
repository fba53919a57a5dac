"""A dataset that a script writes is whole and sound, or is none."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ingest import IngestSettings, SourceSettings, ingest
from ingest.retry import retry
from ingest.settings import NetworkSettings
from shards import Dataset, InProcess, UserError, verify_dataset, write_dataset
from shards.samples import Given, write_shards


def picture(number: int, kind: str = "JPEG") -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 8 + number, 3), np.uint8)).save(sink, kind)
    return sink.getvalue()


def samples(count: int) -> Iterator[Given]:
    for number in range(count):
        yield f"own_{number}", picture(number), f"caption {number}", {"score": number / 2}


def tree(folder: Path) -> dict[str, str]:
    """The hash of every file's bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_what_was_given_is_there_and_is_sound(tmp_path: Path) -> None:
    given: list[Given] = [
        ("a", picture(0), "one", {"n": 1}),
        ("b-2", picture(1, "PNG"), ["first", "second", "drittes ü"], {"n": None}),
        ("c_3", picture(2, "WEBP"), [], {"n": 3, "key": "c_3", "deep": {"list": [1, None]}}),
    ]
    dataset = write_dataset(tmp_path / "new" / "set", iter(given), name="own", shard_size=2)
    assert (dataset.name, dataset.captioned, [shard.count for shard in dataset.shards]) == ("own", True, [2, 1])
    got = [(shard, row) for shard in dataset.shards for row in range(shard.count)]
    assert [shard.keys[row] for shard, row in got] == ["a", "b-2", "c_3"]
    assert [shard.image_bytes(row) for shard, row in got] == [image for _, image, _, _ in given]
    assert [shard.caption(row) for shard, row in got] == ["one", "first", ""]
    metas = [shard.meta(row) for shard, row in got]
    assert [json.loads(meta.pop("captions")) for meta in metas] == [[], ["second", "drittes ü"], []]
    assert metas == [{"key": key, **meta} for key, _, _, meta in given]
    names = [path.name for path in (tmp_path / "new" / "set").iterdir()]
    assert not [name for name in names if name.startswith((".", "planning"))]
    report = verify_dataset(str(dataset.folder))
    assert (report.problems, report.shards, report.rows, report.samples) == ((), 2, 3, 3)
    facts = json.loads((tmp_path / "new" / "set" / "dataset.json").read_bytes())
    assert facts == {"schema": 1, "name": "own", "captioned": True, "shards": 2, "rows": 3}


def test_equal_samples_make_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_dataset(tmp_path / name, samples(7), name="own", shard_size=3)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_without_captions_it_says_so(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "set", [("a", picture(0), " ", {})], name="own")
    assert not dataset.captioned
    assert verify_dataset(str(tmp_path / "set")).problems == ()


def test_verify_sees_what_is_damaged_in_it(tmp_path: Path, damage_image: Callable[[Dataset, int, int], None]) -> None:
    damage_image(write_dataset(tmp_path / "set", samples(5), name="own", shard_size=2), 1, 0)
    report = verify_dataset(str(tmp_path / "set"))
    assert [problem.partition(" hashes to")[0] for problem in report.problems] == ["shard 00001: 00001.tar"]
    assert "restore the files from where they came" in report.mend


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (("a.b", picture(0), "c", {}), "sample 2, 'a.b': this key cannot be"),
        (("own_1", picture(0), "c", {}), "sample 2, 'own_1': another sample has this key"),
        (("x", picture(0)[:-40], "c", {}), "sample 2, 'x': its image does not decode"),
        (("x", b"", "c", {}), "its image is no JPEG, PNG or WebP"),
        (("x", b"GIF89a", "c", {}), "its image is no JPEG, PNG or WebP"),
        (("x", picture(0), "c", {"key": "y"}), "the field key is 'y'"),
        (("x", picture(0), ["c", "d"], {"captions": "e"}), "several captions, and a field captions"),
        (("x", picture(0), "c", {"n": float("nan")}), "no JSON"),
        (("x", picture(0), "c", {"n": b"bytes"}), "no JSON"),
        (("x", picture(0), "\ud800", {}), "no text"),
        (("x", picture(0), [None], {}), "no text"),
    ],
)
def test_a_sample_that_cannot_be_one_is_named_and_nothing_is_left(tmp_path: Path, bad: Any, says: str) -> None:
    out = tmp_path / "set"
    with pytest.raises(UserError, match=re.escape(says)):
        write_dataset(out, [*samples(2), bad], name="own", shard_size=1)
    assert not out.exists()


class _StoppedError(Exception):
    pass


def _stopping(count: int) -> Iterator[Given]:
    yield from samples(count)
    raise _StoppedError


def test_what_was_interrupted_is_no_dataset_and_is_written_again(tmp_path: Path) -> None:
    out = tmp_path / "set"
    with pytest.raises(_StoppedError):
        write_dataset(out, _stopping(3), name="own", shard_size=1)
    for use in (Dataset.open, verify_dataset):
        with pytest.raises(UserError, match=r"did not come to an end.*Write it again"):
            use(str(out))
    # The same call makes it whole; of the shards that it has no more, nothing is left.
    write_dataset(out, samples(1), name="own")
    assert verify_dataset(str(out)).problems == ()
    write_dataset(tmp_path / "whole", samples(1), name="own")
    assert tree(out) == tree(tmp_path / "whole")


KILLED = """
from pathlib import Path
from shards import write_dataset

def work(number):
    root = Path({root!r})
    tick_at_files(str(root / f"killed-{{number}}"))
    images = [(root / f"{{row}}.jpg").read_bytes() for row in range(6)]
    samples = [(f"own_{{row}}", image, f"caption {{row}}", {{"score": row / 2}}) for row, image in enumerate(images)]
    write_dataset(root / f"killed-{{number}}", samples, name="own", shard_size=2)
"""


def test_killed_anywhere_it_is_whole_or_none(tmp_path: Path, kill_often: Callable[[str, int], list[int]]) -> None:
    write_dataset(tmp_path / "whole", samples(6), name="own", shard_size=2)
    expected = tree(tmp_path / "whole")
    for row in range(6):
        (tmp_path / f"{row}.jpg").write_bytes(picture(row))
    kills = 8
    kill_often(KILLED.format(root=str(tmp_path)), kills)
    left = []
    for number in range(1, kills + 1):
        out = tmp_path / f"killed-{number}"
        if (out / "dataset.json").exists():
            assert verify_dataset(str(out)).problems == ()
            left.append("whole")
            continue
        if out.exists():
            with pytest.raises(UserError):
                Dataset.open(str(out))
        left.append("none")
        write_dataset(out, samples(6), name="own", shard_size=2)
        assert tree(out) == expected
    assert left.count("none") > 3


def test_other_things_are_not_written_over(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", samples(2), name="own")
    before = tree(tmp_path / "set")
    with pytest.raises(UserError, match="no dataset can be made here: this is a dataset of shards"):
        write_dataset(tmp_path / "set", samples(3), name="own")
    assert tree(tmp_path / "set") == before
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "00000.tar").write_bytes(b"another's")
    with pytest.raises(UserError, match="no dataset can be made here"):
        write_dataset(tmp_path / "tars", samples(2), name="own")
    (tmp_path / "planned").mkdir()
    (tmp_path / "planned" / "planning.json").write_text(
        '{"schema": 1, "name": "x", "settings": {}, "shards": 0, "rows": 0, "first": 0, "row": 0, "round": null}'
    )
    with pytest.raises(UserError, match="one is being ingested"):
        write_dataset(tmp_path / "planned", samples(2), name="own")


def test_what_is_no_dataset_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no samples"):
        write_dataset(tmp_path / "set", [], name="own")
    assert not (tmp_path / "set").exists()
    with pytest.raises(UserError, match="cannot be part of a key"):
        write_dataset(tmp_path / "set", samples(1), name="No Name")
    with pytest.raises(UserError, match="0 samples a shard"):
        write_dataset(tmp_path / "set", samples(1), name="own", shard_size=0)
    assert not (tmp_path / "set").exists()


def test_shards_may_be_empty_and_lie_on_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSTILL_CACHE", str(tmp_path / "copies"))
    given = list(samples(3))
    dataset = write_shards("memory://bucket/written", [given[:2], [], given[2:]], name="own")
    assert [shard.keys for shard in dataset.shards] == [["own_0", "own_1"], [], ["own_2"]]
    assert verify_dataset("memory://bucket/written").problems == ()


def test_ingest_and_retry_say_whose_it_is(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", samples(2), name="own")
    (tmp_path / "a.tsv").write_text("caption\thttp://a/1\n")
    settings = IngestSettings(
        source=SourceSettings(paths=(str(tmp_path / "a.tsv"),), format="cc3m"), out=str(tmp_path / "set"), name="own"
    )
    with pytest.raises(UserError, match="it was not made by `clipstill ingest`"):
        ingest(settings, InProcess())
    with pytest.raises(UserError, match="was not made from a plan"):
        retry(str(tmp_path / "set"), NetworkSettings(), InProcess())
    assert verify_dataset(str(tmp_path / "set")).problems == ()

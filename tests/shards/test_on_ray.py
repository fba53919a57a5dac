"""Verifying and selecting come to the same in this process, on Ray, and after an interruption."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipstill.main import main
from shards import Dataset, InProcess, UserError, verify_dataset
from shards.adopt import AdoptSettings, adopt, find_tars
from shards.executor import Outcome
from shards.ray_executor import RayExecutor
from shards.samples import write_shards
from shards.selection import FilterSettings, select
from tests.shards.selection.test_filter import keys_of, picture

SHARDS, EACH = 6, 4


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


@pytest.fixture
def whole(tmp_path: Path) -> Dataset:
    """Adopted, so that nobody has decoded it: every fifth picture is there twice; the seventh is cut, and says so."""
    for shard in range(SHARDS):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(EACH * shard, EACH * shard + EACH):
                image = picture(number - 1 if number % 5 == 1 else number, 40, 40)
                add(tar, f"s{number:03d}.jpg", image[:-200] if number == 7 else image)
                add(tar, f"s{number:03d}.txt", b"a caption")
                add(tar, f"s{number:03d}.json", json.dumps({"sound": int(number != 7)}).encode())
    settings = AdoptSettings(patterns=(str(tmp_path / "*.tar"),), out=str(tmp_path / "whole"))
    adopt(settings, find_tars(settings.patterns), InProcess())
    return Dataset.open(settings.out)


def rules(whole: Dataset, out: Path, **more: Any) -> FilterSettings:
    return FilterSettings(shards=whole.folder.url, out=str(out), where=("sound == 1",), unique="near", **more)


def files(folder: Path) -> dict[str, bytes]:
    """Every file but those that name this very folder."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name not in {"dataset.json"}}


@pytest.mark.usefixtures("ray_here")
def test_on_ray_as_in_this_process(whole: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    index = whole.folder.path / "00004.index.arrow"
    index.write_bytes(index.read_bytes()[:-1] + b"x")
    here, there = verify_dataset(whole.folder.url), verify_dataset(whole.folder.url, RayExecutor(2))
    assert here == there
    assert [problem[:11] for problem in here.problems] == ["shard 00001", "shard 00004"]
    line = ["shards", "verify", whole.folder.url]
    assert main([*line, "--workers", "2"]) == 1
    on_ray = capfd.readouterr().out
    assert main([*line, "--in-process"]) == 1
    assert capfd.readouterr().out == on_ray
    assert "2 problems" in on_ray
    index.write_bytes(index.read_bytes()[:-1] + b"1")
    select(rules(whole, tmp_path / "here" / "kept", sample="50%"))
    line = ["shards", "filter", whole.folder.url, "--where", "sound == 1", "--unique", "near", "--sample", "50%"]
    assert main([*line, "--out", str(tmp_path / "there" / "kept"), "--workers", "2"]) == 0
    assert files(tmp_path / "here" / "kept") == files(tmp_path / "there" / "kept")


def test_images_that_a_condition_has_left_out_are_not_hashed(whole: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the image of s007 does not decode"):
        select(FilterSettings(shards=whole.folder.url, out=str(tmp_path / "all"), unique="near"))
    select(rules(whole, tmp_path / "kept"))
    gone = {7, *(number for number in range(SHARDS * EACH) if number % 5 == 1)}
    assert keys_of(Dataset.open(str(tmp_path / "kept"))) == [
        f"s{number:03d}" for number in range(SHARDS * EACH) if number not in gone
    ]


class Interrupted(InProcess):
    """Ctrl-C after so many shards; counts those that were done."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.done = after, 0

    def wait(self, most: float | None = None) -> Outcome | None:
        outcome = super().wait(most)
        self.done += outcome is not None
        if self.done == self.after:
            raise KeyboardInterrupt
        return outcome


@pytest.mark.parametrize("after", [1, 4, SHARDS + 2])
def test_an_interrupted_selection_goes_on(whole: Dataset, tmp_path: Path, after: int) -> None:
    select(rules(whole, tmp_path / "once" / "kept"))
    again = rules(whole, tmp_path / "again" / "kept")
    with pytest.raises(KeyboardInterrupt):
        select(again, Interrupted(after))
    with pytest.raises(UserError, match=r"`clipstill shards filter`.*goes on"):
        Dataset.open(again.out)
    rest = Interrupted(-1)
    select(again, rest)
    # What was done once is not done again, but for what the interrupt kept from being counted.
    assert rest.done <= 2 * SHARDS - after + 2
    assert files(tmp_path / "once" / "kept") == files(tmp_path / "again" / "kept")
    assert not list((tmp_path / "again" / "kept").rglob("*.tmp"))


def test_a_table_that_changed_is_another_rule(whole: Dataset, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("s000\ns001\n")
    settings = FilterSettings(shards=whole.folder.url, out=str(tmp_path / "kept"), keys=str(keys))
    assert select(settings).samples == 2
    keys.write_text("s000\n")
    with pytest.raises(UserError, match="there is a dataset made by filter --keys"):
        select(settings)


def test_hashes_of_noise_need_no_image_twice(tmp_path: Path) -> None:
    """A picture of one colour and one of noise in a dataset of one: nothing to be near to."""
    random = np.random.default_rng(0)
    data = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (30, 30, 3), np.uint8)).save(data, "PNG")
    one = write_shards(tmp_path / "one", [[("a", data.getvalue(), "x", {})], []], name="one")
    settings = FilterSettings(shards=one.folder.url, out=str(tmp_path / "kept"), unique="near")
    assert select(settings).samples == 1

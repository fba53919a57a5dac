"""Tars that somebody else wrote, and a selection of them, go the whole way: every command takes them as our own."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clipstill.main import main
from shards import Dataset


def write_theirs(own: Dataset, folder: Path) -> None:
    """The samples of a dataset as another program packs them: captions after images, in tars of their own."""
    folder.mkdir()
    for shard in own.shards:
        with tarfile.open(folder / f"their-{shard.id}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for row, key in enumerate(shard.keys):
                image = shard.image_bytes(row)
                parts = {
                    "json": json.dumps({"url": f"http://example.com/{key}"}).encode(),
                    "png" if image.startswith(b"\x89PNG") else "jpg": image,
                    "txt": shard.caption(row).encode(),
                }
                for extension, data in parts.items():
                    entry = tarfile.TarInfo(f"./{key}.{extension}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))


def test_adopted_and_selected_datasets_go_the_whole_way(
    tmp_path: Path,
    make_dataset: Callable[..., Dataset],
    save_teacher: Callable[..., str],
    save_student: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_theirs(make_dataset(tmp_path / "own", (9, 11)), tmp_path / "tars")
    teacher, student = save_teacher(tmp_path / "teacher"), save_student(tmp_path / "student.json")
    data, cache = str(tmp_path / "data"), str(tmp_path / "cache")

    def run(*words: str) -> str:
        assert main(list(words)) == 0
        return capfd.readouterr().out

    run("shards", "adopt", str(tmp_path / "tars"), "--out", data, "--in-process")
    run("shards", "verify", data)
    run(
        "cache",
        "build",
        data,
        "--teacher",
        teacher,
        "--teacher-name",
        "t",
        "--views",
        "2",
        "--out",
        cache,
        "--in-process",
    )
    run("cache", "verify", data, "--cache", cache, "--rows", "8")
    run("cache", "report", data, "--cache", cache, "--clusters", "4")
    page = (tmp_path / "cache" / "t" / "report.html").read_text()
    assert page.count("data:image/") >= 20
    best = str(tmp_path / "best")
    scores = str(tmp_path / "cache" / "t" / "scores.parquet")
    told = run(
        "shards", "filter", data, "--table", scores, "--best", "clip_score=60%", "--unique", "near", "--out", best
    )
    assert "12 of 20 samples" in told
    ranked = sorted(pq.read_table(scores).to_pylist(), key=lambda row: -row["clip_score"])
    kept = {key for shard in Dataset.open(best).shards for key in shard.keys}
    assert kept == {row["key"] for row in ranked[:12]}
    run("shards", "filter", data, "--table", scores, "--per", "cluster=2", "--out", str(tmp_path / "even"))
    cluster = {row["key"]: row["cluster"] for row in pq.read_table(scores).to_pylist()}
    even = Counter(cluster[key] for shard in Dataset.open(str(tmp_path / "even")).shards for key in shard.keys)
    assert even == {number: min(count, 2) for number, count in Counter(cluster.values()).items()}
    for name, shards in (("whole", data), ("best", best)):
        run("shards", "verify", shards)
        run("cache", "verify", shards, "--cache", cache, "--rows", "8")
        out = str(tmp_path / f"run-{name}")
        how = ["--student", student, "--steps", "2", "--batch-size", "4", "--out", out]
        run("distill", shards, "--cache", cache, *how)
        told = json.loads(run("evaluate", f"{out}/model", "--on", shards))
        result: dict[str, Any] = told["models"][f"{out}/model"][shards]
        assert result["samples"] == (20 if name == "whole" else 12)
        dr = str(tmp_path / f"dr-{name}")
        run("cache", "export", shards, "--cache", cache, "--format", "npz", "--out", dr, "--in-process")
        anew = str(tmp_path / f"anew-{name}")
        run("shards", "materialize", shards, "--shard-size", "5", "--out", anew, "--in-process")
        run("distill", anew, "--cache", cache, "--join", "skip", *how[:-1], str(tmp_path / f"run-anew-{name}"))

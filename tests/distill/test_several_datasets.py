"""Several datasets train one student: each sample with its own cache's row, known by its place, as keys may repeat."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipstill.main import main
from distill.report import write_run_page
from distill.run_folder import RunFolder
from distill.training.run import Run
from distill.training.train import train
from shards import Dataset, InProcess, UserError
from teacher_cache import TeacherCache, ViewPolicy
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.settings import Join
from teacher_cache.several import open_caches
from teacher_cache.views import EncodedImage


@pytest.fixture
def two(world: Any, second: Any) -> dict[str, Any]:
    return {"shards": (world.shards, second.shards), "cache": (world.cache, second.cache)}


def test_every_sample_meets_its_own_image_caption_and_teachers_row(
    world: Any, second: Any, two: dict[str, Any], tmp_path: Path
) -> None:
    assert world.dataset.shards[0].keys[0] == second.dataset.shards[0].keys[0], "keys that two datasets share"
    run = Run(world.settings(tmp_path, **two))
    alone = [
        (dataset, TeacherCache.open(cache, dataset))
        for dataset, cache in ((world.dataset, world.cache), (second.dataset, second.cache))
    ]
    firsts, seen = [0, len(world.dataset.shards)], Counter[int]()
    for step in range(run.order.steps_per_epoch):
        batch = run.loader.batch(step)
        (said,) = batch.targets.teachers["txt"]
        for at, (place, row) in enumerate(run.order.batch(step).tolist()):
            number = int(place >= firsts[1])
            dataset, cache = alone[number]
            own = np.array([(place - firsts[number], row)])
            shard = dataset.shards[place - firsts[number]]
            seen[number] += 1
            assert batch.keys[at] == shard.keys[row]
            assert batch.captions["txt"][at] == shard.caption(row)
            assert np.array_equal(said.text[at].numpy(), cache.text(own)[0])
            views = [cache.image(own, np.array([view]))[0] for view in range(3)]
            index = next(view for view in range(3) if np.array_equal(said.image[at].numpy(), views[view]))
            (view,) = cache.stored_views(own, np.array([index]))
            assert view is not None
            pixels = np.empty((32, 32, 3), np.uint8)
            cache.policy.render(EncodedImage(shard.image_bytes(row)), view, 32, pixels)
            assert np.array_equal(batch.images[at].numpy(), pixels)
    # 49 samples in batches of 6: one is left over, of either.
    assert sum(seen.values()) == 48
    assert seen[0] in (25, 26)


def test_a_run_that_was_stopped_ends_in_the_same_bytes(world: Any, two: dict[str, Any], tmp_path: Path) -> None:
    whole = world.settings(tmp_path / "whole", **two, weights={two["shards"][1]: 0.5}, checkpoint_every=3, keep=9)
    train(whole)
    shutil.copytree(whole.out, tmp_path / "again")
    (tmp_path / "again" / "done.json").unlink()
    for step in ("00000006", "00000008"):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / step)
    train(replace(whole, out=str(tmp_path / "again")))
    one, other = (tmp_path / name / "model" / "open_clip_model.safetensors" for name in ("whole", "again"))
    assert one.read_bytes() == other.read_bytes()


def test_how_much_of_each_an_epoch_shows_is_said(
    world: Any, two: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = world.settings(tmp_path / "run", **two, weights={two["shards"][1]: 0.5}, steps=1)
    train(settings)
    told = [
        "of tiny an epoch shows 26 of 26 samples, each once",
        "of second an epoch shows 12 of 23 samples, each 0.5 times on average",
    ]
    assert [line for line in caplog.messages if "an epoch shows" in line] == told
    facts = RunFolder.read(tmp_path / "run").facts
    assert facts["dataset"]["name"] == "tiny + second"
    assert facts["steps_per_epoch"] == 38 // 6
    write_run_page(tmp_path / "run")
    page = next((tmp_path / "run").glob("*.html")).read_text()
    assert all(line in page for line in told)


def test_other_weights_are_another_run(world: Any, two: dict[str, Any], tmp_path: Path) -> None:
    train(world.settings(tmp_path, **two, steps=1))
    with pytest.raises(UserError, match=r"another run: settings\.weights"):
        train(world.settings(tmp_path, **two, steps=1, weights={two["shards"][0]: 3.0}))


def test_caches_are_told_apart(world: Any, second: Any, two: dict[str, Any], tmp_path: Path) -> None:
    swapped = two | {"cache": (second.cache, world.cache)}
    for join in ("error", "skip", "none"):
        with pytest.raises(UserError):
            Run(world.settings(tmp_path, **swapped, join=join))
    # Joined by key the rows would be other samples', and no key would tell.
    with pytest.raises(UserError, match=r"is of dataset 'second', and is given for 'tiny'.*in the order"):
        open_caches([second.cache, world.cache], [world.dataset, second.dataset], join=Join(policy="none"))
    fewer = BuildSettings(
        shards=second.shards,
        cache=str(tmp_path / "fewer"),
        teachers=(TeacherSpec(world.teacher, "teach"),),
        batch_size=64,
        views=2,
        policy=ViewPolicy(scale=(0.5, 1.0), flip=0.5),
    )
    build_cache(fewer, InProcess())
    with pytest.raises(UserError, match=r"has views 3, .*fewer.* 2.*same options"):
        Run(world.settings(tmp_path, **two | {"cache": (world.cache, fewer.cache)}))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cache": ("one",)}, "1 caches for 2 datasets.*in their order"),
        ({"weights": {"three": 1.0}}, "three is none of the datasets.*Use one of"),
        ({"weights": {"shards": 1.0}}, "shards is more than one of the datasets"),
    ],
)
def test_what_does_not_fit_is_refused(
    world: Any, two: dict[str, Any], tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        Run(world.settings(tmp_path, **two | change))


def test_a_weight_that_shows_nothing_is_refused(world: Any, second: Any, two: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no epoch shows a sample of .*second"):
        Run(world.settings(tmp_path, **two, weights={second.shards: 1e-4}))


def test_one_dataset_has_no_weight(world: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--weight.*there is one dataset"):
        world.settings(tmp_path, weights={world.shards: 2.0})
    with pytest.raises(UserError, match=r"SHARDS: .* is given twice"):
        world.settings(tmp_path, shards=(world.shards, world.shards), cache=(world.cache, world.cache))


def test_the_commands_take_several(
    world: Any, second: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    both, caches = [world.shards, second.shards], ["--cache", world.cache, "--cache", second.cache]
    out = str(tmp_path / "run")
    how = ["--student", world.student, "--steps", "2", "--batch-size", "6", "--out", out]
    assert main(["distill", *both, *caches, "--weight", f"{second.shards}=2", *how]) == 0
    assert "of second an epoch shows 46 of 23 samples, each 2 times on average" in caplog.messages
    capfd.readouterr()
    assert main(["evaluate", f"{out}/model", "--on", both[0], "--on", both[1]]) == 0
    told = json.loads(capfd.readouterr().out)["models"][f"{out}/model"]
    assert {name: one["samples"] for name, one in told.items()} == {world.shards: 26, second.shards: 23}
    assert main(["shards", "verify", *both]) == 0
    assert [line.partition(":")[0] for line in capfd.readouterr().out.splitlines()] == both
    assert main(["cache", "verify", *both, *caches, "--rows", "2"]) == 0
    told = capfd.readouterr().out
    assert f"{second.cache}/teach is sound: 6 files, 23 samples" in told
    new = [str(tmp_path / name) for name in ("one", "two")]
    build = ["--teacher", world.teacher, "--views", "1", "--in-process", "--out", new[0], "--out", new[1]]
    assert main(["cache", "build", *both, *build]) == 0
    told = capfd.readouterr().out
    assert told.count("samples x 1 view") == 2
    assert len(TeacherCache.open(new[1], Dataset.open(second.shards)).dataset) == 23
    assert main(["cache", "build", *both, *build[:-2]]) == 2
    assert "1 caches for 2 datasets" in capfd.readouterr().err

"""Scenes: the same everywhere, and a held-out split that asks for more than memory."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from demo import scenes
from demo.scenes import CLASSES, COLOURS, SHAPES, TEMPLATES, UNSEEN, render, scene

FINGERPRINT = """
import hashlib, sys
from demo.scenes import render, scene
digest = hashlib.sha256()
for split in ("train", "held_out"):
    for index in (5, 0, 12345):
        shown = scene(index, split)
        digest.update(repr(shown).encode() + render(shown, 64).tobytes())
sys.stdout.write(digest.hexdigest())
"""


def test_the_same_in_every_process() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT], check=True, env={"PYTHONHASHSEED": seed}, stdout=subprocess.PIPE
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout) == 2 * hashlib.sha256().digest_size


def test_scenes_do_not_depend_on_order() -> None:
    forwards = [scene(index, "train") for index in range(20)]
    backwards = [scene(index, "train") for index in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert scene(3, "train") != scene(3, "held_out")


def test_held_out_pairs_are_never_trained_on_and_are_tested() -> None:
    trained = {(thing.colour, thing.shape) for index in range(6000) for thing in scene(index, "train").things}
    assert trained == {(colour, shape) for colour in COLOURS for shape in SHAPES} - UNSEEN
    held_out = [scene(index, "held_out") for index in range(2000)]
    assert {(shown.things[0].colour, shown.things[0].shape) for shown in held_out if shown.unseen} == UNSEEN
    assert 0.2 < sum(shown.unseen for shown in held_out) / len(held_out) < 0.3


def test_each_colour_and_each_shape_misses_one() -> None:
    assert sorted(colour for colour, _ in UNSEEN) == sorted(COLOURS)
    assert sorted(shape for _, shape in UNSEEN) == sorted(SHAPES)


def test_splits_share_no_scene() -> None:
    pictures = [{shown.things for shown in (scene(i, split) for i in range(1000))} for split in scenes.SPLITS]
    assert not pictures[0] & pictures[1]


def test_labels_are_classes_and_name_the_main_object() -> None:
    assert len(set(CLASSES)) == len(COLOURS) * len(SHAPES)
    assert all(template.count("{}") == 1 for template in TEMPLATES)
    for index in range(300):
        shown = scene(index, "held_out")
        main = shown.things[0]
        assert shown.label in CLASSES
        assert shown.label == f"{main.colour} {main.shape}"
        assert all(thing.size <= main.size for thing in shown.things if thing.colour != main.colour)


def test_captions_tell_much_but_not_all() -> None:
    shown = [scene(index, "train") for index in range(3000)]
    whole = sum(all(word in one.caption.lower() for word in one.label.split()) for one in shown)
    assert 0.5 < whole / len(shown) < 0.95
    assert len({one.caption for one in shown}) > 0.9 * len(shown)
    assert all(one.caption and "{" not in one.caption and "\t" not in one.caption for one in shown)
    assert {one.ground.kind for one in shown} == set(scenes.GROUND_KINDS)
    assert {one.ground.colour for one in shown} == set(scenes.GROUNDS)
    assert {thing.texture for one in shown for thing in one.things} == set(scenes.TEXTURES)
    assert {len(one.things) for one in shown} == {1, 2, 3, 4}


@pytest.mark.parametrize("relation", scenes.RELATIONS)
def test_relations_hold_in_the_picture(relation: str) -> None:
    told = 0
    for index in range(2000):
        shown = scene(index, "train")
        if len(shown.things) == 2 and f" {relation} " in shown.caption.lower():
            main, other = shown.things
            across, down = other.x - main.x, other.y - main.y
            distance = {"above": down, "below": -down, "left of": across, "right of": -across}[relation]
            assert distance > 0.2
            told += 1
    assert told > 20


def test_images_show_their_main_colour() -> None:
    for index in range(200):
        shown = scene(index, "train")
        pixels = np.asarray(render(shown, 80), dtype=np.int16)
        assert pixels.shape == (80, 80, 3)
        close = np.abs(pixels - np.array(shown.things[0].tint)).max(axis=2) <= 6
        assert close.mean() > 0.01, shown


def test_edges_are_smooth() -> None:
    main = scenes.Thing("circle", "red", "plain", 0.5, 0.5, 0.5, 0.0, (200, 0, 0))
    shown = scenes.Scene((main,), scenes.Ground("plain", "white"), "a red circle", "red circle", 0)
    reds = set(np.asarray(render(shown, 64))[:, :, 1].ravel().tolist())
    assert len(reds) > 2
    assert reds > {0, scenes.GROUNDS["white"][1]}


@pytest.mark.parametrize(("index", "split"), [(0, "test"), (-1, "train")])
def test_unknown_scenes_are_refused(index: int, split: str) -> None:
    with pytest.raises(ValueError, match=split if index == 0 else "-1"):
        scene(index, split)

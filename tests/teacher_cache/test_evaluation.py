"""The evaluation policy: what is cached of an image is what open_clip says of it after its own preprocessing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from shards import Dataset, InProcess, UserError
from teacher_cache import TeacherCache
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache

Save = Callable[..., str]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("evaluation") / "shards", (6, 5))


@pytest.fixture
def save(tmp_path: Path, save_teacher: Callable[..., str]) -> Save:
    """`save(name, mode, interpolation, **model_cfg)`: a teacher that resizes images in that way."""

    def saved(name: str, mode: str, interpolation: str = "bicubic", **options: Any) -> str:
        spec = save_teacher(tmp_path / name, **options)
        path = Path(spec, "open_clip_config.json")
        config = json.loads(path.read_text())
        config["preprocess_cfg"] |= {"resize_mode": mode, "interpolation": interpolation}
        path.write_text(json.dumps(config))
        return spec

    return saved


def build(dataset: Dataset, cache: Path, *specs: str) -> BuildSettings:
    return BuildSettings(
        shards=str(dataset.folder),
        cache=str(cache),
        teachers=tuple(TeacherSpec(spec, Path(spec.split(":")[-1]).name) for spec in specs),
        views=1,
        policy="evaluation",
        batch_size=4,
    )


WAYS = [("shortest", "bicubic"), ("shortest", "bilinear"), ("squash", "bicubic"), ("squash", "bilinear")]


@pytest.mark.parametrize("way", [WAYS[0], WAYS[3]])
def test_embeddings_are_open_clip_s_own(
    dataset: Dataset, tmp_path: Path, save: Save, stored: Callable[..., pa.Table], way: tuple[str, str]
) -> None:
    """Of an ensemble, each at its own resolution; and no other way to resize gives the same."""
    specs = save("a", *way), save("b", *way, seed=1, image=32, dim=16)
    settings = build(dataset, tmp_path / "cache", *specs)
    build_cache(settings, InProcess())
    for spec, name in zip(specs, "ab", strict=True):
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{spec}")
        model = model.eval().double()
        own = open_clip.get_model_preprocess_cfg(model)
        for shard in dataset.shards:
            got = np.array(stored(settings.cache, "views-000-000", shard.id, name)["view_000"].to_pylist())
            images = [Image.open(io.BytesIO(shard.image_bytes(row))) for row in range(shard.count)]

            def embedded(preprocess: Any, images: list[Image.Image] = images, model: Any = model) -> np.ndarray:
                with torch.no_grad():
                    pixels = torch.stack([preprocess(image) for image in images]).double()
                    return np.asarray(model.encode_image(pixels, normalize=True))

            expected = embedded(preprocess)
            # Half a unit in float16's last place, and the float32 forward's own error.
            assert (np.abs(got - expected) <= np.abs(expected) * 2.0**-11 + 3e-6).all()
            for other in WAYS:
                changed = PreprocessCfg(**{**own, "resize_mode": other[0], "interpolation": other[1]})
                apart = np.abs(embedded(image_transform_v2(changed, is_train=False)) - got).max()
                assert (apart < 1e-3) == (other == way)
    policy = TeacherCache.open(settings.cache, dataset, "a").policy
    assert (policy.kind, policy.interpolation) == ({"shortest": "centre", "squash": "squash"}[way[0]], way[1])
    assert build_cache(settings, InProcess()).summary.finished == 0


@pytest.mark.parametrize("way", [("squash", "bicubic"), ("shortest", "bilinear")])
def test_teachers_that_resize_in_different_ways_are_refused(
    dataset: Dataset, tmp_path: Path, save: Save, way: tuple[str, str]
) -> None:
    one, other = save("one", "shortest"), save("other", *way)
    with pytest.raises(UserError) as caught:
        build_cache(build(dataset, tmp_path / "cache", one, other), InProcess())
    message = str(caught.value)
    assert f"no view that all teachers share: {one} (shortest, bicubic), {other} ({way[0]}, {way[1]})" in message
    assert message.endswith("Build them one by one, or draw crops")
    assert "\n" not in message
    assert not (tmp_path / "cache").exists()


def test_padding_is_refused(dataset: Dataset, tmp_path: Path, save: Save) -> None:
    with pytest.raises(UserError, match=r"no view that all teachers share: .*longest"):
        build_cache(build(dataset, tmp_path / "cache", save("padded", "longest")), InProcess())


def test_a_teacher_of_texts_may_stand_beside(
    dataset: Dataset, tmp_path: Path, save: Save, linear_teacher: Callable[..., str]
) -> None:
    text = linear_teacher(without=("embed_images",))
    settings = build(dataset, tmp_path / "cache", text, save("squash", "squash"))
    build_cache(settings, InProcess())
    assert TeacherCache.open(settings.cache, dataset, "squash").policy.kind == "squash"


def test_evaluation_and_crops_do_not_mix(dataset: Dataset, tmp_path: Path, linear_teacher: Callable[..., str]) -> None:
    settings = build(dataset, tmp_path / "cache", linear_teacher())
    with pytest.raises(UserError, match="2 were asked for"):
        BuildSettings(shards="a", cache="b", teachers=settings.teachers, policy="evaluation", views=2)
    build_cache(settings, InProcess())
    crops = BuildSettings(shards=settings.shards, cache=settings.cache, teachers=settings.teachers, batch_size=4)
    with pytest.raises(UserError, match=r'policy\.kind was "centre", now "crop"'):
        build_cache(crops, InProcess())

"""LiT from a cache: a text tower alone meets stored image embeddings; no image is read."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from clip_models import create_student, join_towers, load_model, save_model
from clipstill.main import main
from distill.training.run import Run
from distill.training.train import train
from evaluation import evaluate, open_set
from shards import InProcess, UserError
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache


def crossed(rows: np.ndarray) -> float:
    return float((np.log(np.exp(rows).sum(axis=1)) - rows.diagonal()).mean())


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def lit(world: Any, rich: str, out: Path, **changes: Any) -> Any:
    """Of the teacher that is as wide as the student."""
    return world.settings(out, **{"cache": rich, "teachers": ("other",), "image_tower": "cache", **changes})


@pytest.fixture
def blind(world: Any, tmp_path: Path) -> str:
    """The world's shards, with zeros for every byte of an image."""
    shutil.copytree(world.shards, tmp_path / "blind")
    for path in (tmp_path / "blind").glob("*.tar"):
        body = bytearray(path.read_bytes())
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.name.endswith((".txt", ".json")):
                    body[member.offset_data : member.offset_data + member.size] = bytes(member.size)
        path.write_bytes(body)
    return str(tmp_path / "blind")


def test_the_loss_is_of_texts_beside_cached_images_by_hand(world: Any, rich: str, tmp_path: Path) -> None:
    """In turn of views as ever, and by the whole context, of which training computes a part."""
    run = Run(lit(world, rich, tmp_path, student_scale=12.0))
    batch = run.loader.batch(2)
    places = run.order.batch(2)
    views = np.array([run.loader._filler._views.index(key, 0) for key in batch.keys])
    image = run.caches[0].image(places, views).astype(np.float64)
    with torch.no_grad():
        text = unit(run.model.encode_text(batch.tokens["txt"]).double().numpy())
    logits = 12.0 * image @ text.T
    assert float(run.step(batch)["loss"]) == pytest.approx((crossed(logits) + crossed(logits.T)) / 2, rel=1e-5)


def test_a_head_maps_images_of_another_width(world: Any, rich: str, tmp_path: Path) -> None:
    run = Run(lit(world, rich, tmp_path, teachers=("teach",), image_head=True, student_scale=12.0))
    batch = run.loader.batch(0)
    head = run.model.visual.head.weight.detach().double().numpy().copy()
    assert head.shape == (24, 40)
    image = unit(batch.targets.teachers["txt"][0].image.double().numpy() @ head.T)
    with torch.no_grad():
        text = unit(run.model.encode_text(batch.tokens["txt"]).double().numpy())
    logits = 12.0 * image @ text.T
    assert float(run.step(batch)["loss"]) == pytest.approx((crossed(logits) + crossed(logits.T)) / 2, rel=1e-5)
    assert np.abs(run.model.visual.head.weight.detach().double().numpy() - head).max() > 0


def test_no_image_is_read(world: Any, rich: str, blind: str, tmp_path: Path) -> None:
    settings = lit(world, rich, tmp_path / "run", steps=2)
    expected = load_file(Path(train(settings).model) / "open_clip_model.safetensors")
    with pytest.raises(UserError, match="does not decode"):
        train(world.settings(tmp_path / "whole", shards=blind, join="skip", join_limit=0.0))
    unread = train(replace(settings, out=str(tmp_path / "blind run"), shards=(blind,)))
    for name, value in load_file(Path(unread.model) / "open_clip_model.safetensors").items():
        assert torch.equal(value, expected[name]), name
    assert Run(settings).loader.batch(0).images.numel() == 0


def test_captions_may_be_the_shards_own_beside_images_alone(world: Any, tmp_path: Path) -> None:
    images = BuildSettings(
        shards=world.shards,
        cache=str(tmp_path / "cache"),
        teachers=(TeacherSpec(world.teacher, "seen"),),
        towers="image",
        views=2,
        batch_size=64,
    )
    build_cache(images, InProcess())
    settings = world.settings(tmp_path, cache=images.cache, image_tower="cache", image_head=True, captions=("txt",))
    run = Run(settings)
    batch = run.loader.batch(0)
    assert batch.captions["txt"] == [run.dataset.shards[place].caption(row) for place, row in run.order.batch(0)]
    run.step(batch)
    with pytest.raises(UserError, match="'affinity' needs text embeddings, and this teacher embedded images only"):
        Run(replace(settings, losses={"affinity": 1.0}))


@pytest.mark.parametrize("head", [False, True])
def test_what_is_delivered_becomes_a_whole_model_with_the_teachers_images(
    world: Any, rich: str, tmp_path: Path, head: bool
) -> None:
    teacher = world.teacher if head else str(world.root / "other")
    name = "teach" if head else "other"
    result = train(lit(world, rich, tmp_path / "run", teachers=(name,), image_head=head, steps=3))
    text = load_model(result.model)
    with pytest.raises(UserError, match="no image tower"):
        text.preprocess(None)  # type: ignore[arg-type]
    assert main(["models", "join", result.model, "--image-tower", teacher, "--out", str(tmp_path / "joined")]) == 0
    joined, beside = load_model(str(tmp_path / "joined")), load_model(teacher)
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    tokens = text.tokenizer(["a small red thing", "two words"])
    with torch.no_grad():
        image = beside.model.encode_image(pixels, normalize=True).double().numpy()
        if head:
            image = unit(image @ text.model.visual.head.weight.double().numpy().T)
        np.testing.assert_allclose(joined.model.encode_image(pixels, normalize=True).numpy(), image, atol=1e-5)
        assert torch.equal(joined.model.encode_text(tokens), text.model.encode_text(tokens))
    assert torch.equal(joined.model.logit_scale, text.model.logit_scale)
    found = evaluate(joined, open_set(world.shards), batch_size=8).result
    assert found["samples"] == 26
    other = load_model(str(world.root / "other") if head else world.teacher)
    with pytest.raises(UserError, match="was trained beside"):
        join_towers(text, other)
    with pytest.raises(UserError, match="no text tower alone"):
        join_towers(joined, beside)


def test_a_text_tower_begins_with_weights_that_exist(world: Any, rich: str, tmp_path: Path) -> None:
    """Those of a whole model, whose image tower is left alone; and of a run of its own kind."""
    model, config = create_student(world.student, 3)
    save_model(model, config, str(tmp_path / "whole"))
    run = Run(lit(world, rich, tmp_path, initial=str(tmp_path / "whole")))
    assert torch.equal(run.model.text.token_embedding.weight, model.token_embedding.weight)
    assert {row.tower for row in run.inherited} == {"text", "logits"}
    first = train(lit(world, rich, tmp_path / "first", steps=1)).model
    on = Run(lit(world, rich, tmp_path, initial=first, student=first))
    assert torch.equal(on.model.text.text_projection, load_model(first).model.text.text_projection)


@pytest.mark.parametrize("length", [3, 9, 77])
def test_captions_without_their_padding_mean_the_same(
    world: Any, save_student: Callable[..., str], length: int
) -> None:
    """In value and gradient, in float64, by the towers of both of open_clip's kinds."""
    from distill.short_texts import encode_by_length, encode_text, has_short_form, shortened  # noqa: PLC0415

    for custom in (False, True):
        path = save_student(world.root / f"short{custom}.json", custom_text=custom)
        model = create_student(path, 1)[0].double()
        context = model.text.context_length if custom else model.context_length
        tokens = torch.zeros(2, context, dtype=torch.int64)
        ends = min(length, context)
        tokens[:, :ends] = torch.randint(1, 40_000, (2, ends), generator=torch.Generator().manual_seed(length))
        tokens[0, ends - 1], tokens[1, 2:], tokens[1, 2] = 49407, 0, 49407
        assert has_short_form(model)
        short = shortened(tokens)
        assert ends <= short.shape[1] < ends + 8
        found = []
        for encode in (model.encode_text, partial(encode_text, model), partial(encode_by_length, model)):
            ids = tokens if encode == model.encode_text else short
            out = encode(ids)
            model.zero_grad()
            F.normalize(out, dim=-1)[:, 0].sum().backward()
            grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            found.append((out.detach(), grads))
        (whole, wanted), *others = found
        for part, got in others:
            assert (whole - part).abs().max() < 1e-12
            assert wanted.keys() == got.keys()
            for name, grad in wanted.items():
                assert (grad - got[name]).abs().max() < 1e-12, name


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text_tower": "cache"}, "both towers"),
        ({"patch_mask": 0.5}, "--patch-mask: no pixels are read"),
        ({"image_size": 64}, "--image-size: no pixels are read"),
        ({"lock": ("image",)}, "--lock: the image tower is from the cache"),
        ({"image_tower": "own", "image_head": True}, "--image-head"),
        ({"image_tower": "own", "text_tower": "cache", "context_length": 9}, "--context-length: no captions"),
        ({"cache": ()}, "image tower from the cache, and there is no cache"),
    ],
)
def test_what_does_not_go_together_is_said(
    world: Any, rich: str, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        lit(world, rich, tmp_path, **({"teachers": ()} if "cache" in changes else {}), **changes)


def test_caches_that_cannot_stand_for_images_are_refused(world: Any, rich: str, tmp_path: Path) -> None:
    for changes, told in (
        ({"teachers": ("teach",)}, "40 wide cannot stand for the image tower of a student 24 wide.*--image-head"),
        ({"teachers": ("other", "teach")}, "2 teachers' image embeddings for one image tower"),
        ({"teachers": ("texts",)}, "embedded captions only"),
        ({"join": "none"}, "no image embeddings, and there is no image tower"),
    ):
        with pytest.raises(UserError, match=told):
            Run(lit(world, rich, tmp_path, **changes))

"""`distill --smoke`: whether a recipe runs, on data and teachers small enough to make on the spot.

The student is the recipe's own, in its full size, and so are losses, caption sets, and the number of teachers. Images
are drawn, teachers have random weights, the batch is tiny: it shows that everything fits together, never how good the
result is.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clip_models import create_student, load_model, save_model
from demo.scenes import render, scene
from distill.losses import LOSSES
from distill.recipe import Recipe, merged, settings_from
from distill.run_folder import Result, RunFiles, read_log
from distill.settings import RunSettings
from shards import InProcess, write_dataset
from shards.dataset import DATASET
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.captions import CaptionSource

_SHARDS, _SAMPLES, _PIXELS, _VIEWS = 2, 16, 96, 2
_WIDTH = 48
"""Of the teachers; no student is as wide, so that losses which project do."""


def smoke(recipe: Mapping[str, Any], given: Mapping[str, Any], start: Callable[[RunSettings], Result]) -> str:
    """Make what is not given, train a few steps, load the student again; returns what that has shown.

    `recipe` and `given` as in `settings_from`; all lies below `given["out"]`, else in a folder that is removed.
    Raises `UserError` as training does.
    """
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        out = given.get("out") or stack.enter_context(tempfile.TemporaryDirectory(prefix="clipstill-smoke-"))
        fields = merged(merged(_lasting(recipe), _small(recipe)), {**given, "out": str(Path(out) / "run")})
        if "shards" not in fields:
            drawn = str(_draw_dataset(Path(out) / "shards", fields))
            fields["shards"] = (drawn,)
            if _needs_cache(fields):
                fields["cache"] = (str(_build_cache(drawn, Path(out), fields)),)
        settings = settings_from(fields)
        result = start(settings)
        shown = _look(settings, result)
    kept = f" It lies in {out}." if "out" in given else ""
    return f"{shown} {time.monotonic() - began:.0f} s.{kept}"


def _small(recipe: Mapping[str, Any]) -> Recipe:
    cuda = torch.cuda.is_available()
    chosen_from = {"super_batch": 8} if recipe.get("super_batch") else {}
    # Half precision is slow on a CPU, and without a meaning for three steps.
    return {"steps": 3, "batch_size": 4, "log_every": 1, **chosen_from, **({} if cuda else {"precision": "fp32"})} | {
        "optimiser": {"warmup": 1}
    }


def _lasting(recipe: Mapping[str, Any]) -> Recipe:
    """The recipe without what looks beyond the run."""
    return {name: value for name, value in recipe.items() if name not in {"evaluation", "wandb"}}


def _needs_cache(fields: Mapping[str, Any]) -> bool:
    return _is_taught(fields) or "cache" in _cached(fields) or "teachers" in fields or _sets(fields) != ("txt",)


def _is_taught(fields: Mapping[str, Any]) -> bool:
    return any(LOSSES[name].needs_teacher for name in fields.get("losses", {}) if name in LOSSES)


def _cached(fields: Mapping[str, Any]) -> set[Any]:
    """What stands for towers: "cache" among it if a teacher's embeddings do."""
    return {fields.get("text_tower"), fields.get("image_tower")}


def _sets(fields: Mapping[str, Any]) -> Sequence[str]:
    captions: Sequence[str] = fields.get("captions", ("txt",))
    return captions


def _draw_dataset(folder: Path, fields: Mapping[str, Any]) -> Path:
    """Scenes with their captions; every other caption set has two of other scenes, as a field of the JSON."""
    if not (folder / DATASET).exists():
        sets = [name for name in _sets(fields) if name != "txt"]
        write_dataset(folder, map(partial(_sample, sets), range(_SHARDS * _SAMPLES)), name="smoke", shard_size=_SAMPLES)
    return folder


def _sample(sets: Sequence[str], row: int) -> tuple[str, bytes, str, dict[str, Any]]:
    drawn, image = scene(row, "train"), io.BytesIO()
    render(drawn, _PIXELS).save(image, "JPEG", quality=90)
    others = [scene(10_000 + 2 * row + more, "train").caption for more in range(2)]
    return f"smoke-{row:09d}", image.getvalue(), drawn.caption, dict.fromkeys(sets, others)


def _build_cache(shards: str, out: Path, fields: Mapping[str, Any]) -> Path:
    names = fields.get("teachers") or ("teacher",)
    texts_only = fields.get("text_tower") == "cache" and not _is_taught(fields)
    width = _WIDTH
    if "cache" in _cached(fields) and "student" in fields and not fields.get("image_head"):
        width = create_student(fields["student"], 0, ("image",))[1]["model_cfg"]["embed_dim"]
    sources = ["txt" if name == "txt" else f"{name}=json:{name}*2" for name in _sets(fields)]
    build = BuildSettings(
        shards=shards,
        cache=str(out / "cache"),
        teachers=tuple(
            TeacherSpec(str(_make_teacher(out / "teachers", name, seed, width)), name)
            for seed, name in enumerate(names)
        ),
        towers="text" if texts_only else "both",
        views=_VIEWS,
        captions=tuple(CaptionSource.parse(source) for source in sources),
        batch_size=_SAMPLES,
    )
    build_cache(build, InProcess())
    return out / "cache"


def _make_teacher(folder: Path, name: str, seed: int, width: int) -> Path:
    """A tiny model of random weights."""
    if (folder / name / "open_clip_config.json").exists():
        return folder / name
    folder.mkdir(parents=True, exist_ok=True)
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"embed_dim": width, "vision_cfg": vision, "text_cfg": text}))
    model, config = create_student(str(path), seed)
    save_model(model, config, str(folder / name))
    return folder / name


@torch.no_grad()
def _look(settings: RunSettings, result: Result) -> str:
    """What the run has shown; the student is loaded as a user would."""
    loaded = load_model(result.model)
    if settings.image_tower == "cache":
        shown, what = (
            loaded.model.encode_text(loaded.tokenizer([scene(0, "held_out").caption]), normalize=True),
            "a text",
        )
    else:
        pixels = loaded.preprocess(render(scene(0, "held_out"), _PIXELS))
        shown, what = loaded.model.encode_image(pixels[None], normalize=True), "an image"
    assert torch.isfinite(shown).all(), f"the student's embedding of {what}"
    losses = [line["loss"] for line in read_log(RunFiles(settings.out).log) if "loss" in line]
    millions = sum(parameter.numel() for parameter in loaded.model.parameters()) / 1e6
    teachers = (len(settings.teachers) or 1) if settings.cache else 0
    terms = " + ".join(settings.terms())
    return (
        f"{settings.student} ({millions:.1f} M parameters) trains: {terms}, {_count(teachers, 'teacher')}, captions "
        f"{' and '.join(settings.captions)}; loss {losses[0]:.4f} → {losses[-1]:.4f} in {_count(result.steps, 'step')} "
        f"of {settings.batch_size}; saved, loaded again, {what} is {shown.shape[1]} numbers."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

"""Build a cache: meet the teachers, settle its layers, then fill them on as many devices as there are."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from dataclasses import dataclass, replace

from shards import Dataset, Folder, IncompleteError, Summary, UserError, run_shards
from shards.choice import Work
from shards.executor import Executor
from teacher_cache.building.facts import publish_teacher, teacher_facts
from teacher_cache.building.settings import BuildSettings, TeacherSpec
from teacher_cache.building.task import BuildLayer, CacheTask, done_specs
from teacher_cache.building.wanted_layers import LayerResolver
from teacher_cache.captions import check_captioned
from teacher_cache.layout import Kind, TeacherFacts, read_teacher, refuse_no_cache, teacher_names
from teacher_cache.teachers import load_teacher
from teacher_cache.views import ViewPolicy

log = logging.getLogger(__name__)

_IMAGES_A_SECOND = 22.0
"""That ViT-B-32 embeds on two cores (benchmarks/results/cache.json). A larger teacher takes longer, but on Ray as well:
one machine's cores are one worker."""
_TRIED = 64
"""Samples of which captions are read beforehand."""


@dataclass(frozen=True)
class BuildReport:
    """What the cache holds now of the teachers asked for: `bytes` over all their files.

    `views` may be more than were asked for: views once made stay. `captions` is how many each sample has.
    """

    folders: tuple[str, ...]
    samples: int
    views: int
    captions: int
    bytes: int
    batch_sizes: tuple[int, ...]
    summary: Summary


def work_of_build(settings: BuildSettings) -> Work:
    """What a build is, by the images that each teacher would embed. Raises `UserError` if there is no such dataset."""
    samples = len(Dataset.open(settings.shards))
    images = samples * (1 if settings.towers == "text" else settings.views) * len(settings.teachers)
    return Work(f"{samples:,} samples, {images:,} forwards", images / _IMAGES_A_SECOND)


def build_cache(settings: BuildSettings, executor: Executor) -> BuildReport:
    """Bring the cache to K views and the captions of every sample, by every teacher; goes on where it stopped.

    Raises:
        UserError: no such dataset or teacher, or a folder holds embeddings of another dataset, teacher or policy.
        IncompleteError: shards are missing at the end.
    """
    dataset = Dataset.open(settings.shards)
    refuse_no_cache(Folder(settings.cache), [teacher.name for teacher in settings.teachers])
    if settings.towers != "image":
        check_captioned(dataset, settings.captions)
    _try_captions(settings, dataset)
    facts, policy = _meet_teachers(settings)
    settings = _known_again(settings, facts)
    facts = [replace(one, name=spec.name) for one, spec in zip(facts, settings.teachers, strict=True)]
    folders = [Folder(settings.cache).child(teacher.name) for teacher in facts]
    layers: list[BuildLayer] = []
    with Folder(settings.cache).alone(), contextlib.closing(executor):
        for number, (teacher, folder) in enumerate(zip(facts, folders, strict=True)):
            publish_teacher(folder, teacher)
            settled = LayerResolver(settings, dataset, teacher, executor).layers(policy)
            layers += [BuildLayer(number, folder.child(layer.name), layer) for layer in settled]
        before = done_specs(layers, dataset)
        if len(facts) > 1:
            # What fails for one teacher is tried again below, for each teacher alone, and reported there.
            with contextlib.suppress(IncompleteError):
                run_shards(CacheTask(settings, layers, dataset, together=True), executor)
        summary = run_shards(CacheTask(settings, layers, dataset), executor)
        for folder in folders:
            folder.sweep()
    # To the second run all that the first one made was there: what this build made is what was not there before it.
    summary = replace(summary, skipped=before, finished=summary.skipped + summary.finished - before)
    columns: Counter[tuple[int, Kind]] = Counter()
    for layer in layers:
        columns[layer.teacher, layer.facts.kind] += len(layer.facts.columns)
    return BuildReport(
        tuple(str(folder) for folder in folders),
        len(dataset),
        max(columns[teacher, "views"] for teacher in range(len(facts))),
        max(columns[teacher, "captions"] for teacher in range(len(facts))),
        int(summary.stats["bytes"]),
        tuple(dict.fromkeys(layer.facts.batch_size for layer in layers)),
        summary,
    )


def _known_again(settings: BuildSettings, facts: list[TeacherFacts]) -> BuildSettings:
    """A teacher that the cache has under another name, its weights having moved, goes on under that one.

    Unless a name was given: then the user has decided.
    """
    cache = Folder(settings.cache)
    standing = {found.fingerprint: name for name in teacher_names(cache) if (found := read_teacher(cache.child(name)))}
    specs = []
    for spec, one in zip(settings.teachers, facts, strict=True):
        name = standing.get(one.fingerprint, spec.name)
        if not spec.named and name != spec.name:
            log.info("%s is in this cache already, as %s: its weights are the same", spec.spec, name)
            spec = TeacherSpec(spec.spec, name)  # noqa: PLW2901
        specs.append(spec)
    return replace(settings, teachers=tuple(specs))


def _try_captions(settings: BuildSettings, dataset: Dataset) -> None:
    """Read a few of each set: what cannot work is said before a layer is there for it."""
    shard = next(shard for shard in dataset.shards if shard.count)
    for source in settings.captions if settings.towers != "image" else ():
        source.texts(shard, range(min(shard.count, _TRIED)))
    shard.release()


def _meet_teachers(settings: BuildSettings) -> tuple[list[TeacherFacts], ViewPolicy]:
    """Who the teachers are, and the policy that their views share."""
    facts: list[TeacherFacts] = []
    ways: dict[str, tuple[str, str]] = {}
    # Here they only say who they are. The device is for the workers, who may be elsewhere.
    forward = replace(settings.forward, device="cpu", compile=False)
    for wanted in settings.teachers:
        teacher = load_teacher(wanted.spec, forward, settings.towers)
        facts.append(teacher_facts(teacher, wanted.name))
        if teacher.image_size is not None and settings.towers != "text":
            ways[wanted.spec] = (teacher.resize_mode, teacher.interpolation)
    if settings.policy != "evaluation":
        return facts, settings.policy
    kinds = {"shortest": "centre", "squash": "squash"}
    mode, interpolation = next(iter(ways.values()), ("shortest", "bicubic"))
    if len(set(ways.values())) > 1 or mode not in kinds:
        how = ", ".join(f"{spec} ({', '.join(way)})" for spec, way in ways.items())
        raise UserError(
            f"evaluation preprocessing makes no view that all teachers share: {how}",
            do="Build them one by one, or draw crops",
        )
    return facts, ViewPolicy(kind=kinds[mode], interpolation=interpolation)  # type: ignore[arg-type]

"""The promise: a student trained from the cache takes the steps it would take with the teacher beside it.

Two runs of one student see the same batches; one has its targets from the cache, the other from a live teacher that
embeds the very views and captions of the batch. They differ by the cache's rounding to float16 and by nothing else:
with the same embeddings kept in float32 a third run follows the live teacher to the last bits of a float32 sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from distill.data.loader import Batch, Views
from distill.losses import Embeddings, Targets
from distill.settings import OptimiserSettings, RunSettings
from distill.training.live import LiveTeachers
from distill.training.run import Run
from shards import Dataset, InProcess
from teacher_cache import ViewPolicy
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.teachers import Teacher, load_teacher
from teacher_cache.views import EncodedImage

STEPS, BATCH, SCALE = 30, 12, 100.0
POLICY = ViewPolicy(scale=(0.5, 1.0), flip=0.5)
EPSILON = 2.0**-11  # float16 rounds each number by at most this fraction of itself


@dataclass(frozen=True)
class Stage:
    dataset: Dataset
    cache: str
    teacher: Teacher
    student: str


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory,
    make_dataset: Callable[..., Dataset],
    save_teacher: Callable[..., str],
    save_student: Callable[..., str],
) -> Stage:
    """60 samples; a teacher 40 wide at 48 pixels, a student 24 wide at 32."""
    root = tmp_path_factory.mktemp("promise")
    dataset = make_dataset(root / "shards", (17, 0, 20, 23))
    spec = save_teacher(root / "teacher", scale=SCALE, width=64)
    settings = BuildSettings(
        shards=str(dataset.folder),
        cache=str(root / "cache"),
        teachers=(TeacherSpec(spec),),
        views=2,
        policy=POLICY,
        batch_size=16,
    )
    build_cache(settings, InProcess())
    return Stage(dataset, settings.cache, load_teacher(spec), save_student(root / "student.json"))


def make_run(stage: Stage, losses: dict[str, float]) -> Run:
    settings = RunSettings(
        shards=str(stage.dataset.folder),
        cache=stage.cache,
        out="unused",
        student=stage.student,
        losses=losses,
        steps=STEPS,
        batch_size=BATCH,
        optimiser=OptimiserSettings(lr=1e-3, warmup=5),
    )
    return Run(settings, teacher_size=stage.teacher.image_size)


def unrounded(stage: Stage, run: Run) -> Callable[[Batch], Batch]:
    """What the cache was made of, before rounding, looked up by key and view."""
    images: dict[tuple[str, int], npt.NDArray[np.float32]] = {}
    texts: dict[str, npt.NDArray[np.float32]] = {}
    teacher = stage.teacher
    for shard in stage.dataset.shards:
        for row, key in enumerate(shard.keys):
            texts[key] = teacher.embed_texts([shard.caption(row)])[0].numpy()
            image = EncodedImage(shard.image_bytes(row))
            for view in range(2):
                drawn = POLICY.draw(key, view, image.width, image.height)
                pixels = torch.from_numpy(POLICY.render(image, drawn, teacher.image_size or 0)[None])
                images[key, view] = teacher.embed_images(pixels)[0].numpy()
    turns = Views(POLICY, 2)

    def told(batch: Batch) -> Batch:
        epoch = batch.step // run.order.steps_per_epoch
        image = np.stack([images[key, turns.index(key, epoch)] for key in batch.keys])
        text = np.stack([texts[key] for key in batch.keys])
        found = Embeddings(torch.from_numpy(image), torch.from_numpy(text), stage.teacher.logit_scale)
        return replace(batch, targets=Targets({"txt": (found,)}))

    return told


def logits(batch: Batch) -> npt.NDArray[np.float64]:
    ((teacher,),) = batch.targets.teachers.values()
    found: npt.NDArray[np.float64] = (
        float(teacher.logit_scale) * (teacher.image.double() @ teacher.text.double().T).numpy()
    )
    return found


@pytest.mark.parametrize(
    "losses",
    [{"affinity": 1.0}, {"affinity": 1.0, "fd": 200.0, "contrastive": 0.5}],
    ids=["affinity", "affinity, fd and contrastive"],
)
def test_a_student_from_the_cache_takes_the_steps_of_one_beside_the_teacher(
    stage: Stage, losses: dict[str, float]
) -> None:
    runs = [make_run(stage, losses) for _ in range(3)]
    ways: list[Callable[[Batch], Batch]] = [
        LiveTeachers([stage.teacher]),
        lambda batch: batch,
        unrounded(stage, runs[2]),
    ]
    seen: list[list[float]] = [[], [], []]
    drift = []
    for batch in runs[0].loader.batches(0, STEPS):
        drift.append(np.abs(logits(ways[0](batch)) - logits(ways[1](batch))).max())
        for run, way, values in zip(runs, ways, seen, strict=True):
            values.append(float(run.step(way(batch))["loss"]))
    live, cached, exact = (np.array(values) for values in seen)
    assert live[-5:].mean() < 0.7 * live[:5].mean(), "nothing was learned, so nothing was compared"

    # Rounding moves a unit vector by at most EPSILON, so a logit, at most by the scale times both vectors' moves.
    assert 0 < max(drift) <= 2 * SCALE * EPSILON * 1.01
    # While the weights are the same the losses agree to 4 digits. (Measured: 2e-5 and 4e-6 of the loss.)
    assert abs(cached[0] - live[0]) < 5e-5 * live[0]
    # Later the weights differ by what rounding did to every step before. (Measured: 1e-3 and 6e-5 of the loss.)
    rounded = np.abs(cached - live) / live
    assert rounded.max() < 1e-2
    # Without the rounding nothing is left. (Measured: 5e-7 and 2e-7 of the loss.)
    bare = np.abs(exact - live) / live
    assert bare.max() < 5e-6
    assert bare.max() < rounded.max() / 20


def test_the_comparison_would_notice_another_view_or_caption(stage: Stage) -> None:
    """Targets of an image's other view, or of a neighbour's caption, are far off: the bounds above mean something."""
    run = make_run(stage, {"affinity": 1.0})
    batch = run.loader.batch(0)
    live = LiveTeachers([stage.teacher])
    ((right,),) = live(batch).targets.teachers.values()
    ((cached,),) = batch.targets.teachers.values()
    other = run.loader.batch(run.order.steps_per_epoch)  # of the next epoch, so of the other view
    following = {key: at for at, key in enumerate(other.keys)}
    shared = [(at, following[key]) for at, key in enumerate(batch.keys) if key in following]
    assert shared, "the two batches have no sample in common"
    ((other_view,),) = live(other).targets.teachers.values()
    here, there = (torch.tensor([pair[side] for pair in shared]) for side in (0, 1))
    assert (right.image[here] - cached.image[here]).abs().max() < 1e-3
    assert (right.image[here] - other_view.image[there]).abs().max() > 1e-2
    assert (right.text - cached.text.roll(1, 0)).abs().max() > 1e-2

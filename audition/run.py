"""An audition: a part of the dataset, what the teachers say of it, students, the verdict and its page.

    OUT/parts/{train,held-out}   selections, by the samples' keys     OUT/runs/TEACHER-SCALE-SEED   students
    OUT/cache                    unless one was given                 OUT/audition.{json,html}      what came of it

Killed and started again it goes on: parts, cache and runs are those that stand, as far as they are finished.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from audition.page import page
from audition.settings import AuditionSettings
from audition.verdict import Candidate, Verdict, judge
from distill.run_folder import RunFiles, read_log
from distill.settings import EvaluationSettings, OptimiserSettings, RunSettings
from distill.training.train import train
from shards import Dataset, Folder, UserError
from shards.fingerprint import first_difference
from shards.places import refuse_other_things
from shards.selection import split
from teacher_cache.building import BuildSettings, TeacherSpec
from teacher_cache.layout import no_cache, teacher_names

log = logging.getLogger(__name__)

_SETTINGS, RESULT, PAGE = "settings.json", "audition.json", "audition.html"
_RETRIEVAL = [f"eval/retrieval/{way}/R@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
_TOP1 = "eval/zero_shot/top1"


def audition(settings: AuditionSettings, build: Callable[[str, str], object] | None) -> tuple[Verdict, str, Path]:
    """Hear everybody; returns the verdict, what decided in words, and the page's path.

    `build(shards, cache)` embeds a dataset by the teachers; None with a cache. Raises `UserError` for what does not fit
    together, and where the folder holds another audition.
    """
    out = Folder(settings.out)
    refuse_other_things(out, "an audition", {_SETTINGS})
    with out.alone():
        return _audition(settings, build, Path(settings.out))


def _audition(
    settings: AuditionSettings, build: Callable[[str, str], object] | None, out: Path
) -> tuple[Verdict, str, Path]:
    _claim(settings, out)
    dataset = Dataset.open(settings.shards)
    samples = len(dataset)
    # A part is a share of all; of a small dataset a tenth is kept to judge by.
    judged = min(settings.held_out / samples, 0.1)
    shares = {"train": min(settings.samples / samples, 1 - judged), "held-out": judged}
    parts = {chosen.url: chosen.samples for chosen in split(settings.shards, shares, str(out / "parts"))}
    (train_on, trained), (judge_by, held) = parts.items()
    if settings.cache is None:
        assert build is not None
        cache = str(out / "cache")
        build(train_on, cache)
    else:
        cache = settings.cache
    names = _teachers(settings, cache)
    figure = "zero-shot top-1" if settings.classes else "mean recall (R@1, 5, 10, both ways)"
    heard = []
    for teacher in names:
        for scale in settings.scales:
            found = []
            for seed in range(settings.seeds):
                run = _run(settings, (train_on, judge_by, cache), teacher, scale, seed)
                train(run)
                found.append(_score(run))
                log.info("%s at %g, seed %d: %.2f %% %s", teacher, scale, seed, found[-1], figure)
            heard.append(Candidate(teacher=teacher, scale=scale, figures=tuple(found)))
    verdict = judge(heard)
    result = {
        "winner": {"teacher": verdict.winner.teacher, "scale": verdict.winner.scale},
        "figure": figure,
        "spread": verdict.spread,
        "leads": {
            name: {"over": lead.over.name, "margin": lead.margin, "told": lead.told}
            for name, lead in (("second", verdict.second), ("rival", verdict.rival))
            if lead is not None
        },
        "candidates": [asdict(one) | {"mean": one.mean} for one in verdict.ranked],
    }
    folder = Folder(settings.out)
    folder.publish(RESULT, (json.dumps(result, indent=1) + "\n").encode())
    folder.publish(PAGE, page(settings, verdict, figure, {"train": trained, "held-out": held}))
    return verdict, figure, out / PAGE


def _claim(settings: AuditionSettings, out: Path) -> None:
    wanted = json.loads(json.dumps({name: value for name, value in asdict(settings).items() if name != "out"}))
    # More seeds, scales and teachers are heard beside those that were.
    decides = {name: value for name, value in wanted.items() if name not in {"seeds", "scales", "teachers"}}
    if (out / _SETTINGS).exists():
        standing = json.loads((out / _SETTINGS).read_text(encoding="utf-8"))
        if difference := first_difference(standing, decides):
            raise UserError(
                f"this folder holds another audition: {difference}", where=str(out), do="Give another --out"
            )
    Folder(out).publish(_SETTINGS, (json.dumps(decides, indent=1) + "\n").encode())


def _teachers(settings: AuditionSettings, cache: str) -> list[str]:
    """The names in the cache of those who are to be heard."""
    known = teacher_names(Folder(cache))
    if not known:
        raise no_cache(Folder(cache))
    if settings.cache is None:
        return [teacher.name for teacher in specs(settings)]
    for name in settings.teachers:
        if name not in known:
            raise UserError(f"no teacher {name!r}; there are {', '.join(known)}", where=f"--teacher, in {cache}")
    return list(settings.teachers or known)


def specs(settings: AuditionSettings) -> tuple[TeacherSpec, ...]:
    """The teachers that are to be run, each with the name of its folder."""
    return tuple(TeacherSpec(spec) for spec in settings.teachers)


def build_settings(settings: AuditionSettings, shards: str, cache: str) -> BuildSettings:
    """What is embedded for the students to learn from."""
    return BuildSettings(shards=shards, cache=cache, teachers=specs(settings), views=settings.views)


def _run(
    settings: AuditionSettings, places: tuple[str, str, str], teacher: str, scale: float, seed: int
) -> RunSettings:
    shards, judge_by, cache = places
    return RunSettings(
        shards=(shards,),
        cache=(cache,),
        out=str(Path(settings.out) / "runs" / f"{teacher}-{scale:g}-{seed}"),
        teachers=(teacher,),
        teacher_scale=scale,
        student=settings.student,
        image_size=settings.image_size or None,
        context_length=settings.context_length or None,
        losses={"affinity": 1.0},
        steps=settings.steps,
        batch_size=settings.batch_size,
        optimiser=OptimiserSettings(lr=settings.lr),
        precision=settings.precision,
        evaluation=EvaluationSettings(
            on=(judge_by,), every=settings.steps, classes=settings.classes, label=settings.label
        ),
        seed=seed,
        keep=1,
    )


def _score(run: RunSettings) -> float:
    """What a finished run came to, in percent."""
    lines = read_log(RunFiles(run.out).log)
    last = next(line for line in reversed(lines) if _RETRIEVAL[0] in line or _TOP1 in line)
    if _TOP1 in last:
        return float(last[_TOP1])
    return sum(float(last[name]) for name in _RETRIEVAL) / len(_RETRIEVAL)

"""The training loop: a student from shards and, with a cache, from what the teachers said about the same views.

settings → dataset, caches, student, losses, optimiser         `run.py`
step     → batch (a function of the step alone)                `distill/data/loader.py`
         → embeddings → Σ weight·loss → gradients              `step.py`
         → clipped, AdamW at the step's learning rate          `Run.step`
every so often → a log line (`record.py`), an evaluation, a checkpoint
end      → the student as an open_clip folder in OUT/model, the best one in OUT/best, then OUT/done.json
"""

from __future__ import annotations

import contextlib
import logging
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch

from clip_models import save_model
from clip_models.inheritance import summary, write_inheritance
from clip_models.measure import tower_sizes
from clip_models.precision import PRECISIONS
from distill.data.batch import Batch
from distill.report import write_run_page
from distill.report.words import share_in_words
from distill.run_folder import BEGINNINGS, Result, RunFiles
from distill.settings import RunSettings
from distill.training.checkpoint import Checkpoints
from distill.training.in_run import InRun
from distill.training.interrupt import Interrupted, Interrupts
from distill.training.monitor import NotFiniteError, Watch
from distill.training.ranks import Ranks
from distill.training.record import Record
from distill.training.run import Run
from distill.training.schedule import learning_rate
from evaluation.sets import open_by_name
from shards import Folder, UserError
from shards.fingerprint import first_difference
from shards.places import local_path, refuse_other_things

log = logging.getLogger(__name__)

_LENGTH = ("steps", "epochs")
"""The settings that say how long a run is: raised, they lengthen one that is there."""


def train(settings: RunSettings, asked: Path | None = None) -> Result:
    """Run `settings` to its end in `settings.out`, going on from the newest checkpoint there.

    One process, or one of several that a launcher started: these share the folder, and the first one writes.
    A run that is there, finished or not, is made longer by more steps or epochs.
    Raises `UserError` for unusable data, cache or student; a run folder made with other settings; a loss that is not
    finite, or has exploded. Raises `Interrupted` when Ctrl-C or SIGTERM has ended it early, or `asked` (as in
    `Interrupts`), after a checkpoint.
    """
    refuse_other_things(Folder(settings.out), "a run", BEGINNINGS)
    ranks = Ranks.join()
    training = _Training(settings, ranks, asked)
    with Folder(settings.out).alone() if ranks.first else contextlib.nullcontext():
        result = training.result()
    # Not after an error: the others may be waiting for this process, which only its end tells them of.
    ranks.leave()
    return result


class _Training:
    def __init__(self, settings: RunSettings, ranks: Ranks, asked: Path | None) -> None:
        self.settings, self.ranks = settings, ranks
        self.files = RunFiles(local_path(settings.out, "a run's folder"))
        if settings.evaluation is not None:
            # What cannot be opened is refused before a student is made for it.
            open_by_name(settings.evaluation.on, settings.evaluation)
        self.run = Run(settings, ranks)
        self.watch = Watch(settings)
        self.interrupts = Interrupts(ranks, settings.checkpoint_minutes, asked)
        self.evaluation = (
            InRun(settings.evaluation, self.run.config, ranks.device, settings.precision, ranks)
            if settings.evaluation
            else None
        )
        self.best: dict[str, Any] | None = None
        self.start = 0

    def result(self) -> Result:
        self._claim()
        # The others may look after the first one has finished.
        done = self.ranks.told(self.files.ended())
        if done is not None and done["steps"] == self.run.steps:
            return Result(str(self.files.model), done["steps"], done["loss"], None, done["best"])
        run, settings = self.run, self.settings
        with Checkpoints(self.files.path, settings.keep) as checkpoints:
            self._resume(checkpoints)
            note = self.evaluation.note if self.evaluation else None
            began = time.monotonic()
            with (
                Record(run, self.watch, self.files, self.start, note) as record,
                self.interrupts,
                contextlib.closing(run.loader.batches(self.start, run.steps)) as batches,
            ):
                for batch in self._while_they_come(batches, checkpoints):
                    step = batch.step + 1
                    values = run.step(batch)
                    with self._explained(batch.step):
                        self.watch.add(step, values, run.weights(batch.step))
                        if step % settings.log_every == 0 or step == run.steps:
                            record.line(step)
                        record.advance()
                        wanted = self.interrupts.wanted(step)
                        self._evaluate_and_keep(step, checkpoints, record, now=wanted.checkpoint)
                    if wanted.end and step < run.steps:
                        self._end_early(step, checkpoints)
            seconds = time.monotonic() - began
            trained = run.steps - self.start
            if self.ranks.first:
                checkpoints.prune()
                self._deliver(checkpoints)
        speed = trained * settings.batch_size / seconds if trained else None
        return Result(str(self.files.model), run.steps, self.watch.last, speed, self.best)

    def _claim(self) -> None:
        """Write the resolved settings, or refuse a folder that holds another run's."""
        identity, standing = self.run.identity(), self.files.identity()
        if standing is not None:
            difference = first_difference(standing, identity)
            if difference and is_longer(standing, identity):
                self._lengthen(standing["steps"], identity)
            elif difference:
                raise UserError(
                    f"this folder holds another run: {difference}",
                    where=str(self.files.path),
                    do="Give another --out, or the settings it was started with",
                )
        elif self.ranks.first:
            facts = self._facts()
            self._say_warmup(facts["warmup"])
            for part in facts["dataset"]["parts"]:
                log.info("%s", share_in_words(part))
            if self.run.device.type == "cpu" and not _has_instructions_for(self.settings.precision):
                log.warning(
                    "this CPU computes %s several times slower than fp32: give --precision fp32",
                    self.settings.precision,
                )
            if Path(self.settings.student).is_dir() and not self.settings.initial:
                told = "the student is built as %s is, with new weights: to go on from its weights give it as --initial"
                log.warning(told, self.settings.student)
            if self.run.inherited:
                log.info("from %s: %s", self.settings.initial, summary(self.run.inherited))
                write_inheritance(self.run.inherited, self.files.inheritance)
            self.files.begin(identity, asdict(self.settings), facts)

    def _facts(self) -> dict[str, Any]:
        return {**self.run.facts(), "versions": _versions()}

    def _lengthen(self, before: int, identity: dict[str, Any]) -> None:
        """Make the run that is here, of so many steps, this longer one."""
        if not self.ranks.first:
            return
        steps = self.files.checkpoint_steps()
        if not steps:
            raise UserError(
                f"a run of {before} steps is to have {self.run.steps}, and no checkpoint of it is left to go on from",
                where=str(self.files.path),
                do="Give another --out",
            )
        text = self._consequence(before, steps[-1])
        log.warning("%s", text)
        self.files.begin(identity, asdict(self.settings), self._facts())
        self.files.done.unlink(missing_ok=True)
        self.files.add_event(steps[-1], "lengthened", text)

    def _consequence(self, before: int, at: int) -> str:
        """What becomes of schedules when a run of so many steps, `at` of them taken, is made longer."""
        optimiser, steps = self.settings.optimiser, self.run.steps
        last, following = learning_rate(at - 1, before, optimiser), learning_rate(at, steps, optimiser)
        rate = f"at step {at} it goes from {last:.3g} to {following:.3g}" if last != following else "it stays as it was"
        courses = any(not isinstance(term.weight, int | float) for term in self.run.terms.values())
        weights = ", and so do the weights of losses" if courses else ""
        alike = not courses and all(
            learning_rate(step, before, optimiser) == learning_rate(step, steps, optimiser) for step in range(at)
        )
        other = "" if alike else f". It is not what a run of {steps} steps from the start would be"
        return (
            f"made longer, from {before} to {steps} steps: from here on the learning rate follows the course of "
            f"{steps} steps ({rate}){weights}{other}"
        )

    def _say_warmup(self, taken: int) -> None:
        asked = self.settings.optimiser.warmup
        if asked is not None and taken < asked:
            share = self.settings.optimiser.warmup_within
            told = "the warm-up takes %d steps, %g %% of the run, instead of %d: give --warmup for another"
            log.info(told, taken, 100 * share, asked)

    def _resume(self, checkpoints: Checkpoints) -> None:
        found = checkpoints.newest() if self.ranks.first else None
        # Damaged ones are told by the first process: all must go on from the same step.
        step = self.ranks.told(found and found[0])
        if step is None:
            return
        self.start = step
        parts, state = found[1:] if found else checkpoints.load(step)
        self.run.restore(parts, state)
        self.watch.restore(state["watch"])
        self.best = state["best"]
        if self.best is not None and self.ranks.told(self.best["step"] not in checkpoints.steps()):
            log.warning("the best checkpoint, of step %d, is gone: what follows is compared anew", self.best["step"])
            self.best = None
        checkpoints.best = self.best["step"] if self.best else None

    def _while_they_come(self, batches: Iterator[Batch], checkpoints: Checkpoints) -> Iterator[Batch]:
        """The batches. A run that was asked to end does so here where the next one waits for a store that is away."""
        step = self.start
        try:
            for batch in batches:
                yield batch
                step = batch.step + 1
        except KeyboardInterrupt:
            # Of several processes some may be in the midst of a step: no state is everybody's.
            if not self.interrupts.number or self.interrupts.at_once or self.ranks.size > 1 or step == self.start:
                raise
            self._keep(step, checkpoints, is_best=False)
            self._end_early(step, checkpoints)

    def _end_early(self, step: int, checkpoints: Checkpoints) -> NoReturn:
        checkpoints.wait()
        # A launcher ends the others when the first of them has ended: none may go before the checkpoint is there.
        self.ranks.told(None)
        message = (
            f"stopped after step {step} of {self.run.steps}, with a checkpoint: the same command goes on from there"
        )
        raise Interrupted(message, self.interrupts.number)

    def _evaluate_and_keep(self, step: int, checkpoints: Checkpoints, record: Record, *, now: bool) -> None:
        """`now`: a checkpoint is wanted whatever the step."""
        run, settings = self.run, self.settings
        last = step == run.steps
        due = now or step % settings.checkpoint_every == 0 or last
        is_best = False
        if self.evaluation is not None and (step % self.evaluation.settings.every == 0 or last):
            is_best = self._evaluate(step, record)
        if is_best or due:
            self._keep(step, checkpoints, is_best=is_best)
            if not last and self.ranks.first:
                for name, report in run.reports().items():
                    self.files.report(name, report | {"step": step})
                record.page()

    def _keep(self, step: int, checkpoints: Checkpoints, *, is_best: bool) -> None:
        self.interrupts.kept()
        # Every process looks at its figures: none may go on from weights that another finds useless.
        watched = self.watch.state()
        self.run.collect()
        if self.ranks.first:
            if is_best:
                checkpoints.best = step
            parts, state = self.run.state()
            checkpoints.save(step, parts, {**state, "watch": watched, "best": self.best})

    def _evaluate(self, step: int, record: Record) -> bool:
        """Evaluate, each process its part; whether these weights are the best so far."""
        assert self.evaluation is not None
        began = time.monotonic()
        figures = self.evaluation(self.run.delivered)
        self.run.student.train()
        if self.ranks.first:
            record.evaluated(step, figures, time.monotonic() - began, self.evaluation.refused)
        figures = self.ranks.told(figures)
        metric = self.evaluation.settings.best
        if metric is None or metric not in figures:
            return False
        best = self.best
        # On resume another figure may be asked for: what was best by the one before says nothing about it.
        if best is not None and best["metric"] == metric and figures[metric] <= best["value"]:
            return False
        self.best = {"step": step, "metric": metric, "value": figures[metric]}
        return True

    def _deliver(self, checkpoints: Checkpoints) -> None:
        run = self.run
        files, folders = self.files, [self.files.model]
        model, config = run.finished()
        save_model(model, config, str(files.model))
        for name, report in run.reports().items():
            if problem := run.hooks[name].missed(report):
                log.warning("%s", problem)
            files.report(name, report | {"step": run.steps, "delivered": tower_sizes(model)})
        if self.best is not None:
            parts, _ = checkpoints.load(self.best["step"])
            run.restore_delivered(parts)
            folders.append(files.best)
            save_model(run.delivered, run.config, str(files.best))
        for folder in (files.path, *folders):
            Folder(folder).sweep()
        files.end(run.steps, self.watch.last, self.best)
        write_run_page(files.path)

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """What is not a number may have come with the batch: then that is the cause."""
        try:
            yield
        except NotFiniteError as error:
            # Every process finds the same figures, but only one has the sample: they tell each other.
            causes = [self._broken_target(at) for at in range(max(0, step - 1), step + 1)]
            heard = self.ranks.heard(next((cause for cause in causes if cause), None))
            for cause in heard:
                if cause is not None:
                    where, what = cause
                    raise UserError(
                        f"{error.problem}: {what} is not finite",
                        where=where,
                        do="Run `clipstill cache verify`, and build what it names again",
                    ) from error
            raise

    def _broken_target(self, step: int) -> tuple[str, str] | None:
        """In which cache which embedding of this process's part of a batch is not finite."""
        batch = self.run.loader.batch(step)
        for captions, said in batch.targets.teachers.items():
            for cache, teacher in zip(self.run.caches, said, strict=True):
                for name, rows in (("image", teacher.image), (captions, teacher.text)):
                    broken = (~torch.isfinite(rows).all(dim=1)).nonzero()[:, 0]
                    if len(broken):
                        return str(cache.folder), f"the cached {name} embedding of {batch.keys[int(broken[0])]}"
        return None


def is_longer(standing: dict[str, Any], identity: dict[str, Any]) -> bool:
    """Whether the second identity is the first one's but for more steps."""
    try:
        same = {**standing, "settings": {**standing["settings"], **{n: identity["settings"][n] for n in _LENGTH}}}
        longer: bool = standing["steps"] < identity["steps"]
    except (KeyError, TypeError):  # another version's
        return False
    return longer and first_difference({**same, "steps": identity["steps"]}, identity) is None


def _has_instructions_for(precision: str) -> bool:
    """Whether this CPU has instructions for it."""
    has = torch.cpu.get_capabilities()
    return not PRECISIONS[precision].native or bool(has.get(f"avx512_{precision}") or has.get(f"amx_{precision}"))


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in ("torch", "open_clip_torch")}


__all__ = ["train"]

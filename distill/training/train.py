"""The training loop: a student from shards and, with a cache, from what the teachers said about the same views.

settings → dataset, caches, student, losses, optimiser         `run.py`
step     → batch (a function of the step alone)                `distill/data/loader.py`
         → embeddings → Σ weight·loss → gradients              `step.py`
         → clipped, AdamW at the step's learning rate          `Run.step`
every so often → a log line, an evaluation, a checkpoint       here
end      → the student as an open_clip folder in OUT/model, the best one in OUT/best, then OUT/done.json
"""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch

from clip_models import save_model
from clip_models.inheritance import summary, write_inheritance
from clip_models.measure import tower_sizes
from clip_models.precision import PRECISIONS
from distill.pruning import pruning_report
from distill.report import write_run_page
from distill.settings import EvaluationSettings, RunSettings
from distill.training.checkpoint import Checkpoints, flatten, unflatten
from distill.training.in_run import InRun
from distill.training.interrupt import Interrupted, Interrupts
from distill.training.logs import RunLog
from distill.training.monitor import NotFiniteError, Watch
from distill.training.ranks import Ranks
from distill.training.run import Run
from evaluation import read_classes
from shards import Dataset, Folder, UserError
from shards.fingerprint import first_difference
from shards.places import local_path, refuse_other_things
from shards.progress import Meter

log = logging.getLogger(__name__)

DONE = "done.json"
SETTINGS = "settings.json"
INHERITANCE = "inheritance.json"
_STARVED = 0.5
"""Of the time between two log lines: waiting this long for batches is worth a word."""


@dataclass(frozen=True)
class Result:
    """A finished run: `model` is the student's open_clip folder, `loss` the mean of the last logged interval.

    `samples_per_second` covers the steps of this call alone and is None if there were none. `best`: the step, metric
    and value of the best checkpoint, whose model is in `best/`; None if none was asked for.
    """

    model: str
    steps: int
    loss: float
    samples_per_second: float | None
    best: dict[str, Any] | None = None


def train(settings: RunSettings) -> Result:
    """Run `settings` to its end in `settings.out`, going on from the newest checkpoint there.

    One process, or one of several that a launcher started: these share the folder, and the first one writes.
    Raises `UserError` for unusable data, cache or student; a run folder made with other settings; a loss that is not
    finite, or has exploded. Raises `Interrupted` when Ctrl-C or SIGTERM has ended it early, after a checkpoint.
    """
    refuse_other_things(Folder(settings.out), "a run", {SETTINGS, INHERITANCE, "ray"})
    ranks = Ranks.join()
    training = _Training(settings, ranks)
    with Folder(settings.out).alone() if ranks.first else contextlib.nullcontext():
        result = training.result()
    # Not after an error: the others may be waiting for this process, which only its end tells them of.
    ranks.leave()
    return result


class _Training:
    def __init__(self, settings: RunSettings, ranks: Ranks) -> None:
        self.settings, self.ranks = settings, ranks
        self.out = local_path(settings.out, "a run's folder")
        _look(settings.evaluation)
        self.run = Run(settings, ranks)
        self.watch = Watch(settings)
        self.interrupts = Interrupts(ranks, settings.checkpoint_minutes)
        self.evaluation = InRun(settings.evaluation, self.run.config, ranks.device) if settings.evaluation else None
        self.best: dict[str, Any] | None = None
        self.start = 0

    def result(self) -> Result:
        self._claim()
        done = self._done()
        if done is not None:
            return Result(str(self.out / "model"), done["steps"], done["loss"], None, done["best"])
        run, settings = self.run, self.settings
        with Checkpoints(self.out, settings.keep) as checkpoints:
            self._resume(checkpoints)
            began = time.monotonic()
            with (
                _Record(self) as record,
                self.interrupts,
                contextlib.closing(run.loader.batches(self.start, run.steps)) as batches,
            ):
                for batch in batches:
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
        return Result(str(self.out / "model"), run.steps, self.watch.last, speed, self.best)

    def _claim(self) -> None:
        """Write the resolved settings, or refuse a folder that holds another run's."""
        identity = self.run.identity()
        path = self.out / SETTINGS
        if path.exists():
            try:
                standing = json.loads(path.read_text())["identity"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"not the settings of a run ({error})", where=str(path), do="Give another --out"
                ) from None
            difference = first_difference(standing, identity)
            if difference:
                raise UserError(
                    f"this folder holds another run: {difference}",
                    where=str(self.out),
                    do="Give another --out, or the settings it was started with",
                )
        elif self.ranks.first:
            facts = {**self.run.facts(), "versions": _versions()}
            self._say_warmup(facts["warmup"])
            body = {"identity": identity, "settings": asdict(self.settings), "facts": facts}
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
                write_inheritance(self.run.inherited, self.out / INHERITANCE)
            Folder(self.out).publish(SETTINGS, json.dumps(body, indent=1).encode())

    def _say_warmup(self, taken: int) -> None:
        asked = self.settings.optimiser.warmup
        if asked is not None and taken < asked:
            share = self.settings.optimiser.warmup_within
            told = "the warm-up takes %d steps, %g %% of the run, instead of %d: give --warmup for another"
            log.info(told, taken, 100 * share, asked)

    def _done(self) -> dict[str, Any] | None:
        done: dict[str, Any] | None = None
        if (self.out / DONE).exists():
            done = json.loads((self.out / DONE).read_text())
            folders = ["model", "best"] if done and done["best"] else ["model"]
            if not all((self.out / folder).is_dir() for folder in folders):
                done = None
        # The others may look after the first one has finished.
        done = self.ranks.told(done)
        return done

    def _resume(self, checkpoints: Checkpoints) -> None:
        saved = self.ranks.told(checkpoints.steps())
        if not saved:
            return
        self.start = saved[-1]
        parts, state = checkpoints.load(self.start)
        run = self.run
        run.model.load_state_dict(parts["model"])
        run.loss.load_state_dict(parts["loss"])
        unflatten(run.optimiser, parts["optimiser"], state["optimiser"])
        if run.average is not None:
            run.average.load_state_dict(parts["average"])
        if run.pruning is not None:
            run.pruning.load_state_dict(parts["pruning"])
        run.scaler.load_state_dict(state["scaler"])
        self.watch.restore(state["watch"])
        self.best = state["best"]
        if self.best is not None and self.ranks.told(self.best["step"] not in checkpoints.steps()):
            log.warning("the best checkpoint, of step %d, is gone: what follows is compared anew", self.best["step"])
            self.best = None
        checkpoints.best = self.best["step"] if self.best else None

    def _end_early(self, step: int, checkpoints: Checkpoints) -> NoReturn:
        checkpoints.wait()
        # A launcher ends the others when the first of them has ended: none may go before the checkpoint is there.
        self.ranks.told(None)
        message = (
            f"stopped after step {step} of {self.run.steps}, with a checkpoint: the same command goes on from there"
        )
        raise Interrupted(message, self.interrupts.signal)

    def _evaluate_and_keep(self, step: int, checkpoints: Checkpoints, record: _Record, *, now: bool) -> None:
        """`now`: a checkpoint is wanted whatever the step."""
        run, settings = self.run, self.settings
        last = step == run.steps
        due = now or step % settings.checkpoint_every == 0 or last
        is_best = False
        if self.evaluation is not None and (step % self.evaluation.settings.every == 0 or last):
            try:
                is_best = self._evaluate(step, record)
            except UserError:
                # What it could not evaluate is trained nevertheless.
                if due:
                    self._keep(step, checkpoints, is_best=False)
                raise
        if is_best or due:
            self._keep(step, checkpoints, is_best=is_best)
            if not last and self.ranks.first:
                if settings.prune:
                    self._publish_what_is_left(pruning_report(run.delivered, settings.prune) | {"step": step})
                record.page()

    def _keep(self, step: int, checkpoints: Checkpoints, *, is_best: bool) -> None:
        run = self.run
        self.interrupts.kept()
        # Every process looks at its figures: none may go on from weights that another finds useless.
        watched = self.watch.state()
        if self.ranks.first:
            if is_best:
                checkpoints.best = step
            parts = {"model": run.model.state_dict(), "loss": run.loss.state_dict()}
            parts["optimiser"], groups = flatten(run.optimiser)
            if run.average is not None:
                parts["average"] = run.average.state_dict()
            if run.pruning is not None:
                parts["pruning"] = run.pruning.state_dict()
            state = {"optimiser": groups, "scaler": run.scaler.state_dict(), "watch": watched, "best": self.best}
            checkpoints.save(step, parts, state)

    def _evaluate(self, step: int, record: _Record) -> bool:
        """Evaluate in the first process; whether these weights are the best so far."""
        assert self.evaluation is not None
        figures = None
        if self.ranks.first:
            began = time.monotonic()
            figures = self.evaluation(self.run.delivered)
            self.run.student.train()
            record.evaluated(step, figures, time.monotonic() - began)
        figures = self.ranks.told(figures)
        metric = self.evaluation.settings.best
        if metric is None:
            return False
        best = self.best
        # On resume another figure may be asked for: what was best by the one before says nothing about it.
        if best is not None and best["metric"] == metric and figures[metric] <= best["value"]:
            return False
        self.best = {"step": step, "metric": metric, "value": figures[metric]}
        return True

    def _deliver(self, checkpoints: Checkpoints) -> None:
        run = self.run
        folders = [self.out / "model"]
        model, config = run.finished()
        save_model(model, config, str(folders[0]))
        if self.settings.prune:
            report = pruning_report(run.delivered, self.settings.prune)
            _say_what_is_left(report)
            self._publish_what_is_left(report | {"step": run.steps, "delivered": tower_sizes(model)})
        if self.best is not None:
            parts, _ = checkpoints.load(self.best["step"])
            model = run.delivered
            weights = parts["model"]
            if run.average is not None:
                within = "module."
                found = parts["average"].items()
                weights = {name.removeprefix(within): value for name, value in found if name.startswith(within)}
            model.load_state_dict(weights)
            folders.append(self.out / "best")
            save_model(model, run.config, str(folders[1]))
        for folder in (self.out, *folders):
            Folder(folder).sweep()
        done = {"steps": run.steps, "loss": self.watch.last, "best": self.best}
        Folder(self.out).publish(DONE, json.dumps(done).encode())
        write_run_page(self.out)

    def _publish_what_is_left(self, report: dict[str, Any]) -> None:
        Folder(self.out).publish("pruning.json", json.dumps(report, indent=1).encode())

    @contextlib.contextmanager
    def _explained(self, step: int) -> Any:
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
        for cache, rows in zip(self.run.caches, batch.teachers, strict=True):
            parts = {"image": rows.image, **rows.text}
            for name, values in parts.items():
                broken = None if values is None else (~torch.isfinite(values).all(dim=1)).nonzero()[:, 0]
                if broken is not None and len(broken):
                    at = int(broken[0]) if batch.taught is None else int(batch.taught[broken[0]])
                    return str(cache.folder), f"the cached {name} embedding of {batch.keys[at]}"
        return None


def _look(evaluation: EvaluationSettings | None) -> None:
    """Refuse what cannot be opened for an evaluation before a student is made for it."""
    if evaluation is not None:
        Dataset.open(evaluation.shards)
        if evaluation.classes:
            read_classes(evaluation.classes)


class _Record:
    """What the first process of a run writes and shows while it trains; of the others, nothing."""

    def __init__(self, training: _Training) -> None:
        self._training = training
        self._began = self._since = time.monotonic()
        self._at, self._waited = training.start, 0.0
        self._stack = contextlib.ExitStack()
        self._starved = False
        self._next_page = 0.0

    def __enter__(self) -> _Record:
        training = self._training
        if training.ranks.first:
            settings, run = training.settings, training.run
            label = f"distill {training.out.name}"
            self._log = self._stack.enter_context(RunLog(training.out, training.start, settings.wandb))
            self._meter = self._stack.enter_context(Meter(label, run.steps, unit="steps", done=training.start))
            note = training.evaluation.note if training.evaluation else None
            if note and not training.start:
                self._log.event(0, "evaluation", note)
                log.warning("%s", note)
            if training.start:
                self._log.event(training.start, "resumed", f"went on from step {training.start}")
        return self

    def __exit__(self, *raised: Any) -> None:
        error = raised[1]
        if self._training.ranks.first and isinstance(error, UserError | Interrupted):
            self._log.event(self._at, "stopped", str(error))
            write_run_page(self._training.out)
        self._stack.__exit__(*raised)

    def line(self, step: int) -> None:
        """Log the means since the last line, and how fast it went."""
        training = self._training
        means: dict[str, Any] = training.watch.take()
        if not training.ranks.first:
            return
        run = training.run
        for name, term in run.terms.items():
            if not isinstance(term.weight, int | float):
                means[f"weight/{name}"] = run.weights(step - 1)[name]
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        waited = min(1.0, (run.loader.waited - self._waited) / seconds)
        measured = {
            "samples_per_second": (step - self._at) * training.settings.batch_size / seconds,
            "waited": waited,
            "memory_gb": _memory_gb(run.device),
            "seconds": now - self._began,
        }
        self._log.write(step, {**means, "lr": run.optimiser.param_groups[0]["lr"]}, measured)
        # The first line's wait is for the first batch.
        if waited > _STARVED and not self._starved and self._at > training.start:
            self._starved = True
            self._starve(step, waited, measured["samples_per_second"])
        self._since, self._at, self._waited = now, step, run.loader.waited

    def _starve(self, step: int, waited: float, rate: float) -> None:
        text = (
            f"starved: {waited:.0%} of the time since step {self._at} went by waiting for batches ({rate:,.0f} samples "
            "a second came). Give it more cores or a faster disk, or store smaller images"
        )
        log.warning("%s", text)
        self._log.event(step, "starved", text)

    def advance(self) -> None:
        if self._training.ranks.first:
            last = self._training.watch.last
            items = self._training.settings.batch_size
            self._meter.advance(1, items=items, note=f"loss {last:.3f}" if last else "")

    def evaluated(self, step: int, figures: dict[str, float], seconds: float) -> None:
        self._log.write(step, figures)
        log.info("after step %d: %s", step, _evaluation_in_words(figures))
        # An evaluation is no part of the training's speed.
        self._since += seconds

    def page(self) -> None:
        """Renew the run's page, unless that would take more than a hundredth of the time."""
        began = time.monotonic()
        if began >= self._next_page:
            write_run_page(self._training.out)
            ended = time.monotonic()
            self._next_page = ended + 100 * (ended - began)


def _evaluation_in_words(figures: dict[str, float]) -> str:
    """The figures that people look at first."""
    named = {
        "eval/zero_shot/top1": "zero-shot top-1",
        "eval/zero_shot/top5": "top-5",
        "eval/retrieval/image_to_text/R@1": "image to text R@1",
        "eval/retrieval/text_to_image/R@1": "text to image R@1",
    }
    return ", ".join(f"{words} {figures[name]:.1f} %" for name, words in named.items() if name in figures)


def _memory_gb(device: torch.device) -> float:
    """The most that was held at once: of the GPU's memory, else of this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    found = Path("/proc/self/status")
    if not found.exists():
        return 0.0
    (line,) = [line for line in found.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e9


def _say_what_is_left(report: dict[str, Any]) -> None:
    target, found = report["target"], report["sparsity"]
    said = "asked to leave out %.1f %%, %.1f %% are: "
    if found < target - 0.02:
        log.warning(said + "run longer, or with a larger --prune-lr", 100 * target, 100 * found)
    elif found > target + 0.05:
        log.warning(said + "give a longer ramp, or a smaller --prune-lr", 100 * target, 100 * found)


def _has_instructions_for(precision: str) -> bool:
    """Whether this CPU has instructions for it."""
    has = torch.cpu.get_capabilities()
    return not PRECISIONS[precision].native or bool(has.get(f"avx512_{precision}") or has.get(f"amx_{precision}"))


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in ("torch", "open_clip_torch")}


__all__ = ["DONE", "SETTINGS", "Result", "train"]

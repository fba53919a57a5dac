"""The demo: every stage in turn, each of which goes on where it stopped.

    scenes → web server → train.tsv, held-out.parquet     (the data)
    → ingest → shards/{train,held-out}                    (Ray)
    → runs/teacher                                        (plain CLIP training; or --teacher)
    → cache build, cache verify → cache/                  (Ray)
    → runs/{baseline,distilled}-SEED                      (equal steps)
    → results/*.json → export/ → table, index.html

Whatever is finished is found and kept, so a demo that was killed goes on and ends with the same numbers; only what is
measured in seconds is measured by whichever call gets there.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from clip_models import load_model
from demo.page import write_page
from demo.pool import run_side_by_side
from demo.scenes import CLASSES, TEMPLATES
from demo.server import HOST, SceneServer, free_port, list_rows
from demo.settings import DemoSettings
from demo.speed import measure_steps
from demo.table import print_tables
from distill.export import FORMATS
from distill.run_folder import RunFiles
from distill.settings import OptimiserSettings, RunSettings
from distill.training.train import train
from evaluation import SetSettings, evaluate, open_set
from ingest import ImageSettings, IngestSettings, NetworkSettings, SourceSettings, ingest
from shards import Folder, IncompleteError, UserError
from shards.fingerprint import first_difference
from shards.ray_executor import RayExecutor
from shards.ray_machines import Needs
from shards.ray_session import ray_session
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.teachers import load_teacher
from teacher_cache.verify import verify_cache

_HERE = Path(__file__).parent
_console = Console(highlight=False)


class Demo:
    """One demo folder. `run` goes through every stage; each finds its own finished work."""

    def __init__(self, settings: DemoSettings, workers: int) -> None:
        self.settings, self.workers = settings, workers
        self.out = Path(settings.out).absolute()

    def run(self) -> Path:
        """Bring the demo to its end; returns the page."""
        self._claim()
        with contextlib.ExitStack() as ray:
            if not self._has("cache"):
                ray.enter_context(ray_session(cpus=self.workers))
            with self._stage("ingest over HTTP, on Ray"):
                ingested = self._ingest()
            with self._stage("train a teacher" if self.settings.teacher is None else "teacher"):
                teacher = self.settings.teacher or train(self._teacher()).model
            with self._stage("teacher cache, on Ray"):
                cache = self._cache(teacher)
        names = [f"{kind}-{seed}" for seed in self.settings.seeds for kind in ("baseline", "distilled")]
        with self._stage("train the students and evaluate them on the held-out scenes"):
            jobs = [partial(self.train_and_score, name) for name in names if not self._has(f"score-{name}")]
            if jobs:
                run_side_by_side("students", jobs, self.workers)
            scores = {name: self._once(f"score-{name}", partial(self._score, self._model(name))) for name in names}
            scores["teacher"] = self._once("score-teacher", partial(self._score, teacher))
        with self._stage("time the steps"):
            speed = self._once("speed", lambda: self._speed(teacher))
        with self._stage("export the student"):
            formats = [name for name, form in FORMATS.items() if form.is_installed]
            exports = {name: self._once(f"export-{name}", partial(self._export, name)) for name in formats}
        results = {"ingest": ingested, "cache": cache, "scores": scores, "speed": speed, "exports": exports}
        results["spread"] = spread(scores, self.settings.seeds)
        Folder(self.out).publish("results.json", json.dumps(results, indent=1).encode())
        print_tables(_console, results)
        return write_page(self.out, results, self._facts())

    def _facts(self) -> dict[str, Any]:
        facts = asdict(self.settings)
        del facts["out"]
        return {**facts, "seeds": list(self.settings.seeds)}

    def _claim(self) -> None:
        """Write the settings into the folder, or refuse a folder made with others."""
        standing = self._once("settings", self._facts)
        difference = first_difference(standing, self._facts())
        if difference:
            raise UserError(
                f"this demo was begun otherwise: {difference}", where=str(self.out), do="Give another --out"
            )

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        _console.print(f"[bold]{name}[/bold]")
        yield
        _console.print(f"  {time.monotonic() - began:.1f} s", style="dim")

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of `make`, kept in `results/` and found there by the next call."""
        folder = Folder(self.out / "results")
        try:
            return json.loads(folder.read(f"{name}.json"))
        except FileNotFoundError:
            value = make()
            folder.publish(f"{name}.json", json.dumps(value, indent=1).encode())
            return value

    def _has(self, result: str) -> bool:
        return (self.out / "results" / f"{result}.json").exists()

    def _ingest(self) -> dict[str, Any]:
        return {
            "train": self._once("ingest-train", lambda: self._ingest_split("train")),
            "held-out": self._once("ingest-held-out", lambda: self._ingest_split("held-out")),
        }

    def _ingest_split(self, split: str) -> dict[str, Any]:
        source = self._list(split)
        settings = IngestSettings(
            source=source,
            out=str(self.out / "shards" / split),
            name=f"scenes-{split}",
            shard_size=self.settings.shard_size,
            image=ImageSettings(size=self.settings.pixels, max_bytes=2_000_000, max_pixels=4_000_000),
            # The web is our own: it needs no sparing.
            network=NetworkSettings(deadline=5.0, retries=1, allow_addresses=(HOST,), per_host_rate=0),
        )
        began = time.monotonic()
        with SceneServer(self._port(), pixels=self.settings.pixels):
            report = ingest(settings, RayExecutor(self.workers))
        seconds = time.monotonic() - began
        return {"rows": report.rows, "samples": report.samples, "failed": report.failed, "seconds": seconds}

    def _port(self) -> int:
        """The web's port: chosen once, since URLs are part of the data."""
        return int(self._once("port", free_port))

    def _list(self, split: str) -> SourceSettings:
        """The list of URLs as a user would have it: a CC3M-format TSV, and a Parquet file with a label column."""
        url = f"http://127.0.0.1:{self._port()}"
        lists = Folder(self.out / "lists")
        if split == "train":
            rows = list_rows(url, "train", self.settings.train_rows)
            text = "".join(f"{caption}\t{address}\n" for caption, address, _ in rows)
            lists.publish("train.tsv", text.encode())
            return SourceSettings(paths=(str(lists.path / "train.tsv"),), format="cc3m")
        columns = zip(*list_rows(url, "held_out", self.settings.held_out_rows), strict=True)
        table = pa.table(dict(zip(("caption", "url", "label"), map(list, columns), strict=True)))
        with lists.staged("held-out.parquet") as path:
            pq.write_table(table, path)
        return SourceSettings(paths=(str(lists.path / "held-out.parquet"),), keep=("label",))

    def _run(self, name: str, student: str, steps: int, lr: float, seed: int) -> RunSettings:
        return RunSettings(
            shards=(str(self.out / "shards" / "train"),),
            out=str(self.out / "runs" / name),
            student=str(_HERE / student),
            losses={"contrastive": 1.0},
            steps=steps,
            batch_size=self.settings.batch_size,
            views=self.settings.views,
            optimiser=OptimiserSettings(lr=lr, warmup=steps // 10),
            seed=seed,
            log_every=5,
            checkpoint_every=max(1, steps // 8),
        )

    def _teacher(self) -> RunSettings:
        return self._run("teacher", "teacher.json", self.settings.teacher_steps, lr=1.5e-3, seed=0)

    def _student(self, kind: str, seed: int) -> RunSettings:
        settings = self._run(f"{kind}-{seed}", "student.json", self.settings.student_steps, lr=1e-3, seed=seed)
        if kind == "baseline":
            return settings
        # The cache brings its own views: the same ones, drawn by the same policy.
        return replace(settings, cache=(str(self.out / "cache"),), losses=self.settings.losses, views=1)

    def _cache(self, teacher: str) -> dict[str, Any]:
        return dict(self._once("cache", lambda: self._build_cache(teacher)))

    def _build_cache(self, teacher: str) -> dict[str, Any]:
        shards, cache = str(self.out / "shards" / "train"), str(self.out / "cache")
        settings = BuildSettings(
            shards=shards,
            cache=cache,
            teachers=(TeacherSpec(teacher, "teacher"),),
            views=self.settings.views,
            batch_size=64,
        )
        began = time.monotonic()
        report = build_cache(settings, RayExecutor(1, Needs(cpus=self.workers)))
        seconds = time.monotonic() - began
        checked = verify_cache(shards, cache)
        if checked.problems:
            raise IncompleteError(f"the teacher cache is not sound: {'; '.join(checked.problems[:3])}")
        return {
            "samples": report.samples,
            "views": report.views,
            "bytes_a_sample": report.bytes / report.samples,
            "seconds": seconds,
            "recomputed": checked.recomputed,
            "min_cosine": checked.min_cosine,
            "logit_drift": checked.logit_drift,
        }

    def _model(self, name: str) -> str:
        return str(RunFiles(self.out / "runs" / name).model)

    def train_and_score(self, name: str) -> None:
        """One student, from start to its scores on disk; called in a process of its own."""
        kind, _, seed = name.rpartition("-")
        train(self._student(kind, int(seed)))
        self._once(f"score-{name}", partial(self._score, self._model(name)))

    def _score(self, model: str) -> dict[str, Any]:
        text = json.dumps({"classes": CLASSES, "templates": TEMPLATES})
        Folder(self.out / "lists").publish("classes.json", text.encode())
        settings = SetSettings(classes=str(self.out / "lists" / "classes.json"), label="label")
        held_out = open_set(str(self.out / "shards" / "held-out"), settings)
        found = evaluate(load_model(model), held_out, batch_size=self.settings.batch_size, limits=False).result
        # What was measured on the way differs between equal runs.
        return {name: value for name, value in found.items() if name != "speed"}

    def _speed(self, teacher: str) -> dict[str, Any]:
        seed = self.settings.seeds[0]
        return measure_steps(self._student("baseline", seed), self._student("distilled", seed), load_teacher(teacher))

    def _export(self, name: str) -> dict[str, float]:
        folder = self.out / "export" / name
        # Not in results/ yet, so whatever stands here was left by a call that was killed.
        shutil.rmtree(folder, ignore_errors=True)
        return FORMATS[name](load_model(self._model(f"distilled-{self.settings.seeds[0]}")), str(folder))


def spread(scores: dict[str, Any], seeds: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """For each measure the mean and the range over seeds of both students, and by how much the distilled one leads."""
    measures: dict[str, Callable[[dict[str, Any]], float]] = {
        "zero-shot top-1": lambda score: score["zero_shot"]["top1"],
        "zero-shot top-5": lambda score: score["zero_shot"]["top5"],
        "image→text R@1": lambda score: score["retrieval"]["image_to_text"]["R@1"],
        "image→text R@5": lambda score: score["retrieval"]["image_to_text"]["R@5"],
        "text→image R@1": lambda score: score["retrieval"]["text_to_image"]["R@1"],
        "text→image R@5": lambda score: score["retrieval"]["text_to_image"]["R@5"],
    }
    found: dict[str, dict[str, Any]] = {}
    for name, measure in measures.items():
        row: dict[str, Any] = {"teacher": measure(scores["teacher"])}
        for kind in ("baseline", "distilled"):
            values = [measure(scores[f"{kind}-{seed}"]) for seed in seeds]
            row[kind] = {"mean": statistics.fmean(values), "low": min(values), "high": max(values)}
        row["separated"] = row["distilled"]["low"] > row["baseline"]["high"]
        found[name] = row
    return found

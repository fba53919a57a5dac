"""`clipstill cache build|verify`: the teacher, once."""

from __future__ import annotations

import argparse

from clipstill.commands.common import Subparsers, add_command, add_runner, cores, make_executor, show

_BUILD = """\
Run a teacher over a dataset once and keep its embeddings.

K seeded views of every image and the caption, float16, in memory-mapped Arrow files. Goes on where it stopped; asking
for more views later adds files and touches none. A teacher is an open_clip model: ARCH:TAG, ARCH:/path/to/weights, or
a folder in open_clip's layout. Caching pays when epochs x students is more than K.
"""

_VERIFY = """\
Check a cache against its dataset and its teacher.

Hashes, keys, counts and norms of every file; then random rows are embedded again from their pixels and the drift is
stated. Exit status 1 if anything is wrong or the drift is over the tolerance.
"""


def add(commands: Subparsers) -> None:
    parser = commands.add_parser("cache", help="The teacher cache: build, verify.")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    build = add_command(
        actions,
        "build",
        _BUILD,
        "  clipstill cache build data/cc3m --teacher ViT-B-32:laion2b_s34b_b79k --views 8 --out data/cc3m-cache\n",
    )
    build.add_argument("shards", metavar="SHARDS", help="what `clipstill ingest` wrote")
    build.add_argument("--out", required=True, metavar="CACHE", help="where the cache goes (a path or s3://...)")
    build.add_argument("--teacher", required=True, metavar="SPEC", help="ARCH:TAG, ARCH:/path/to/weights, or a folder")
    build.add_argument("--teacher-name", metavar="NAME", help="the teacher's folder in the cache (default: from SPEC)")
    build.add_argument("--views", type=int, default=4, metavar="K", help="views an image")
    build.add_argument("--scale", type=float, nargs=2, default=(0.9, 1.0), metavar=("LOW", "HIGH"), help="crop areas")
    build.add_argument("--flip", type=float, default=0.0, metavar="P", help="probability of mirroring")
    build.add_argument("--centre", action="store_true", help="one central view instead of random crops (K = 1)")
    build.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of the teacher's forward")
    build.add_argument("--batch-size", type=int, default=64, metavar="N", help="images a forward")
    add_runner(build, workers="one a GPU, or one using every core")
    build.set_defaults(run=run_build)
    verify = add_command(
        actions, "verify", _VERIFY, "  clipstill cache verify data/cc3m --cache data/cc3m-cache --rows 256\n"
    )
    verify.add_argument("shards", metavar="SHARDS", help="the dataset")
    verify.add_argument("--cache", required=True, metavar="CACHE", help="what `clipstill cache build` wrote")
    verify.add_argument("--teacher-name", metavar="NAME", help="which teacher, if the cache holds several")
    verify.add_argument("--teacher", metavar="SPEC", help="where the teacher is now, if it has moved")
    verify.add_argument("--rows", type=int, default=64, metavar="N", help="random rows to recompute")
    verify.add_argument("--seed", type=int, default=0, help="which rows")
    verify.add_argument("--tolerance", type=float, default=0.05, metavar="T", help="largest logit drift accepted")
    verify.set_defaults(run=run_verify)


def run_build(args: argparse.Namespace) -> int:
    import torch  # noqa: PLC0415 - `--help` stays fast

    from teacher_cache.build import BuildSettings, build_cache  # noqa: PLC0415
    from teacher_cache.views import ViewPolicy  # noqa: PLC0415

    policy = ViewPolicy(kind="centre" if args.centre else "crop", scale=tuple(args.scale), flip=args.flip)
    settings = BuildSettings(
        shards=args.shards,
        cache=args.out,
        teacher=args.teacher,
        name=args.teacher_name,
        views=1 if args.centre else args.views,
        policy=policy,
        precision=args.precision,
        batch_size=args.batch_size,
    )
    gpus = torch.cuda.device_count()
    executor = make_executor(args, workers=gpus or 1, cpus=1 if gpus else cores(), gpus=1 if gpus else 0)
    report = build_cache(settings, executor)
    done = report.summary
    show(
        f"{report.samples} samples x {report.views} views and a caption, {report.bytes / 1e6:.1f} MB "
        f"({report.bytes / report.samples:,.0f} bytes a sample), in {report.folder}"
    )
    show(f"{done.finished} files made, {done.skipped} were there already")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    from teacher_cache.verify import verify_cache  # noqa: PLC0415 - `--help` stays fast

    report = verify_cache(
        args.shards,
        args.cache,
        teacher_name=args.teacher_name,
        teacher=args.teacher,
        rows=args.rows,
        seed=args.seed,
        tolerance=args.tolerance,
    )
    for problem in report.problems:
        show(problem)
    verdict = f"{len(report.problems)} problems" if report.problems else "sound"
    show(f"{verdict}: {report.files} files, {report.rows} samples")
    if report.recomputed:
        show(
            f"{report.recomputed} rows recomputed: lowest cosine {report.min_cosine:.7f}, "
            f"largest logit drift {report.logit_drift:.5f}"
        )
    return 1 if report.problems else 0

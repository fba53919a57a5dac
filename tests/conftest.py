"""Small real things to test with: datasets of a few images, and models of a few thousand numbers."""

from __future__ import annotations

import atexit
import io
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Before torch is imported anywhere: threads that spin while they wait cost more than they give at these sizes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test asks a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards import Dataset, outages
from shards.samples import write_shards

_COPIES = tempfile.TemporaryDirectory(prefix="clipstill-tests-")
# What is kept beside copies of files shall not outlive the tests.
os.environ["CLIPSTILL_CACHE"] = _COPIES.name
atexit.register(_COPIES.cleanup)

Sample = tuple[bytes, str, str]
"""Encoded image, its extension, caption."""

MakeDataset = Callable[..., Dataset]
SaveModel = Callable[..., str]

WORDS = [
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "house",
    "tree",
    "river",
    "small",
    "large",
    "old",
    "new",
    "bright",
    "flat",
]


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    """Image bytes of (h, w, 3) or (h, w) uint8."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


def picture(seed: int, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: smooth colours with some noise, never the same twice."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows * a + columns * b + c) for a, b, c in random.uniform(0.05, 0.6, (3, 3))]
    noise = random.normal(0, 20, (height, width, 3))
    return np.clip(127 + 90 * np.stack(waves, axis=2) + noise, 0, 255).astype(np.uint8)


def small_samples(count: int, seed: int) -> list[Sample]:
    """JPEG and PNG images of 30 to 60 pixels a side, with captions."""
    random = np.random.default_rng([seed, 7])
    samples: list[Sample] = []
    for number in range(count):
        width, height = (int(side) for side in random.integers(30, 61, 2))
        caption = " ".join(str(word) for word in random.choice(WORDS, random.integers(2, 6)))
        kind, extension = ("PNG", "png") if number % 5 == 4 else ("JPEG", "jpg")
        samples.append((encoded(picture(seed * 1000 + number, width, height), kind), extension, caption))
    return samples


def write_dataset(
    folder: str | Path, shards: Sequence[Sequence[Sample]], name: str = "tiny", keys: str = ""
) -> Dataset:
    """A dataset with these samples in these shards; `keys`: what keys begin with (its name)."""
    numbers = itertools.count()

    def keyed(samples: Sequence[Sample]) -> Iterator[tuple[str, bytes, str, dict[str, Any]]]:
        for image, _, caption in samples:
            yield f"{keys or name}-{next(numbers):09d}", image, caption, {"caption": caption}

    return write_shards(folder, map(keyed, shards), name=name)


def model_cfg(
    *, image: int = 32, dim: int = 24, width: int = 32, layers: int = 1, vision_layers: Any = None, **extra: Any
) -> dict[str, Any]:
    """A tiny open_clip `model_cfg`; `vision_layers` of four numbers makes a ResNet."""
    vision = {"image_size": image, "layers": vision_layers or layers, "width": width}
    vision |= {} if vision_layers else {"patch_size": image // 4, "head_width": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": layers}
    return {"embed_dim": dim, "vision_cfg": vision, "text_cfg": text, **extra}


JOINED = {"ingest retry", "ingest report", "models bench"}
"""Two words that are one command, as the first alone takes names in the place of the second."""


LONG_FILES = [
    "integration/test_ray_training.py",
    "shards/test_runner.py",
    "teacher_cache/test_build.py",
    "faults/test_ray.py",
    "faults/test_ingest.py",
    "distill/test_ranks.py",
    "distill/test_train.py",
]
"""What begins first where several run at once, the longest first: begun last, it would be waited for alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    rank = {root / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session")
def parse_line() -> Callable[[str], None]:
    """`parse_line("clipstill ... # a comment")`: fails unless the command line takes it; runs nothing."""
    from clipstill.main import build_parser  # noqa: PLC0415 - few tests need it

    def parse(line: str) -> None:
        program, *words = shlex.split(line, comments=True)
        assert program == "clipstill"
        two = " ".join(words[:2])
        try:
            build_parser().parse_args([two, *words[2:]] if two in JOINED else words)
        except SystemExit:
            pytest.fail(f"not understood: {line}")

    return parse


@pytest.fixture(scope="session")
def in_shell() -> Callable[[str, Path], str]:
    """Run a line in a folder as a user would who copies it; returns what it prints."""

    def run(line: str, folder: Path) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(
            ["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout

    return run


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Torch computes on one thread."""
    import torch  # noqa: PLC0415 - after the environment above

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_dataset() -> MakeDataset:
    """`make_dataset(folder, counts, seed=0, name="tiny")`, or `samples=` in place of counts: the opened dataset."""

    def make(
        folder: str | Path,
        counts: Sequence[int] = (),
        *,
        seed: int = 0,
        name: str = "tiny",
        keys: str = "",
        samples: Sequence[Sequence[Sample]] | None = None,
    ) -> Dataset:
        chosen = samples or [small_samples(count, seed * 100 + number) for number, count in enumerate(counts)]
        return write_dataset(folder, chosen, name, keys)

    return make


@pytest.fixture(scope="session")
def damage_image() -> Callable[[Dataset, int, int], None]:
    """`damage_image(dataset, shard, row)`: zeros in place of a sample's image, as a failing disk leaves it."""

    def damage(dataset: Dataset, shard: int, row: int) -> None:
        start, size = dataset.shards[shard].places(row)[0]
        with (dataset.folder.path / f"{shard:05d}.tar").open("r+b") as file:
            file.seek(start)
            file.write(bytes(size))

    return damage


@pytest.fixture(scope="session")
def save_student() -> SaveModel:
    """`save_student(path, **model_cfg)`: writes a student's configuration, returns its path."""

    def save(path: Path, **options: Any) -> str:
        path.write_text(json.dumps(model_cfg(**options)))
        return str(path)

    return save


@pytest.fixture(scope="session")
def save_teacher(save_student: SaveModel) -> SaveModel:
    """`save_teacher(folder, seed=0, scale=20.0, **model_cfg)`: saves a tiny teacher, returns its folder as a spec."""
    import torch  # noqa: PLC0415

    from clip_models import create_student, save_model  # noqa: PLC0415

    def save(folder: Path, *, seed: int = 0, scale: float = 20.0, **options: Any) -> str:
        folder.parent.mkdir(parents=True, exist_ok=True)
        config = save_student(folder.with_suffix(".json"), **{"image": 48, "dim": 40, **options})
        model, full = create_student(config, seed)
        with torch.no_grad():
            model.logit_scale.fill_(float(np.log(scale)))
        save_model(model, full, str(folder))
        return str(folder)

    return save


HARNESS = """
import json, os, signal, sys

COUNT, LIMIT = 0, 0

def tick(*_):
    # Called by the program wherever it may be killed.
    global COUNT
    COUNT += 1
    if COUNT == LIMIT:
        os.kill(os.getpid(), signal.SIGKILL)

def tick_at_files(folder):
    # Before every opening, renaming, making and removing below a folder.
    def hook(event, arguments):
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and folder in str(arguments[0]):
            tick()
    sys.addaudithook(hook)

def child(number, limit):
    global LIMIT
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        LIMIT = limit
        work(number)
        os.write(writing, str(COUNT).encode())
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(process, 0)
    with open(reading) as pipe:
        return os.waitstatus_to_exitcode(status), pipe.read()

wanted = int(sys.argv[1])
exec(sys.argv[2])
code, total = child(0, 0)
assert code == 0, code
points = [1 + (2 * at + 1) * int(total) // (2 * wanted) for at in range(wanted)]
print(json.dumps([[number, point, child(number, point)[0]] for number, point in enumerate(points, 1)]))
"""


@pytest.fixture(scope="session")
def kill_often() -> Callable[[str, int], list[int]]:
    """`kill_often(program, times)`: really kill a process, at `times` moments spread over what it does.

    `program` defines `work(number)`, in which `tick` is called or `tick_at_files(folder)` arranges that it is. Work 0
    runs to its end in a process of its own; works 1 to `times`, each in a process of its own, end by SIGKILL, the first
    early, the last late. Returns the moments (numbers of ticks).
    """

    def kill(program: str, times: int) -> list[int]:
        command = [sys.executable, "-c", HARNESS, str(times), program]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        outcomes = json.loads(done.stdout.splitlines()[-1])
        assert [code for _, _, code in outcomes] == [-signal.SIGKILL] * times, (outcomes, done.stderr)
        return [point for _, point, _ in outcomes]

    return kill


MEASURED = {"started", "seconds", "attempts"}
"""The ledger's columns that no second run repeats."""


def files_below(folder: str | Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too: path → bytes; of a ledger's rows all that is not measured, of a plan
    not the command, which may say how to fetch.
    """
    root = Path(folder)
    return {str(path.relative_to(root)): _content(path) for path in sorted(root.rglob("*")) if path.is_file()}


def _content(path: Path) -> bytes:
    if path.suffix == ".json" and b'"command"' in path.read_bytes():
        facts = json.loads(path.read_bytes())
        return json.dumps({name: value for name, value in facts.items() if name != "command"}).encode()
    if path.suffix != ".parquet":
        return path.read_bytes()
    table = pq.read_table(path)
    return repr(table.drop_columns([name for name in table.column_names if name in MEASURED]).to_pylist()).encode()


@pytest.fixture(scope="session")
def snapshot() -> Callable[[str | Path], dict[str, bytes]]:
    return files_below


@pytest.fixture(autouse=True)
def _no_store_has_answered() -> Iterator[None]:
    """A store is waited for once it has answered this process, and another test's is another store."""
    yield
    outages._answered.clear()
    outages._away.clear()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 server on this machine; the environment names it and holds credentials for it."""
    import s3fs  # noqa: PLC0415 - only a few tests need a store
    from moto.server import ThreadedMotoServer  # noqa: PLC0415

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    endpoint = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        yield endpoint
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


_BUCKETS = itertools.count()


@pytest.fixture
def bucket(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new, empty bucket; local copies of what is read from it lie in `tmp_path / "copies"`."""
    import s3fs  # noqa: PLC0415

    assert s3_endpoint
    monkeypatch.setenv("CLIPSTILL_CACHE", str(tmp_path / "copies"))
    name = f"bucket-{next(_BUCKETS)}"
    # Another test may have left one that knows another server.
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"

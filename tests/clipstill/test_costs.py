"""`clipstill plan`: what a job will take, held against jobs that are run and counted."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import s3fs

from clipstill.costs import CostSettings, StageCost, costs
from clipstill.main import main
from ingest import ImageSettings, IngestSettings, NetworkSettings, SourceSettings, ingest
from shards import InProcess, UserError
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from tests.conftest import encoded, picture


class Asked(logging.Handler):
    """What the store in this process is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        found = re.search(r'"(?:\x1b\[[\d;]*m)*(GET|PUT|POST|HEAD|DELETE) (\S+)', record.getMessage())
        if found:
            listing = found[1] == "GET" and "list-type" in found[2]
            self.kinds["writes" if listing or found[1] in {"PUT", "POST"} else "reads"] += found[1] != "DELETE"


@pytest.fixture
def asked() -> Iterator[Asked]:
    handler, logger = Asked(), logging.getLogger("werkzeug")
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A list of 96 pictures that are served on this machine, and the bytes of all."""
    folder = tmp_path / "pictures"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    lines = []
    for number in range(96):
        (folder / f"{number}.jpg").write_bytes(encoded(picture(number, 320, 240)))
        lines.append(f"a picture of something, number {number}\thttp://127.0.0.1:{server.server_port}/{number}.jpg\n")
    listing = tmp_path / "list.tsv"
    listing.write_text("".join(lines))
    yield listing, sum(path.stat().st_size for path in folder.iterdir())
    server.shutdown()
    server.server_close()


def test_what_is_planned_is_what_comes_of_it(
    bucket: str, served: tuple[Path, int], tmp_path: Path, asked: Asked, save_teacher: Callable[..., str]
) -> None:
    """Of 48 shards more than of 4, as what a run costs by itself is no part of the plan: it also looks at what is there
    again and again while it lasts.
    """
    listing, answered = served
    store, counted, planned = s3fs.S3FileSystem(), {}, {}
    teacher = save_teacher(tmp_path / "teacher")
    for size in (24, 2):
        out, cache = f"{bucket}/{size}", f"{bucket}/{size}-cache"
        source = SourceSettings(paths=(str(listing),), format="cc3m")
        network = NetworkSettings(allow_addresses=("127.0.0.1",))
        asked.kinds.clear()
        ingest(
            IngestSettings(
                source=source, out=out, name="set", shard_size=size, image=ImageSettings(size=224), network=network
            ),
            InProcess(),
        )
        ingested = asked.kinds.copy()
        asked.kinds.clear()
        build = BuildSettings(shards=out, cache=cache, teachers=(TeacherSpec(teacher, "one"),), views=3, batch_size=64)
        build_cache(build, InProcess())
        tars = sum(store.size(name) for name in store.find(out) if name.endswith(".tar"))
        counted[size] = ingested, asked.kinds.copy()
        payload = (".tar", ".arrow", ".parquet")
        stored = [
            sum(store.size(name) for name in store.find(place) if name.endswith(payload) and "_plan" not in name)
            for place in (out, cache)
        ]
        image_kb = tars / 96 / 1e3 - 3.072
        planned[size] = costs(
            CostSettings(
                rows=96,
                found=1,
                answer_kb=answered / 96 / 1e3,
                image_kb=image_kb,
                shard_size=size,
                views=3,
                width=8,
            )
        )
        ingest_plan, cache_plan, *_ = planned[size]
        assert ingest_plan.down == pytest.approx(answered)
        if size == 24:
            # Small files are mostly what every file has; of larger ones it is next to nothing.
            assert ingest_plan.stored == pytest.approx(stored[0], rel=0.2)
            beside = 2 * 4 * 3000
            assert cache_plan.stored == pytest.approx(stored[1] - beside, rel=0.2)
    for stage in (0, 1):
        few, many = counted[24][stage], counted[2][stage]
        for kind, names in (("writes", "puts"), ("reads", "gets")):
            more = getattr(planned[2][stage], names) - getattr(planned[24][stage], names)
            assert more == pytest.approx(many[kind] - few[kind], rel=0.15, abs=15), (stage, kind, few, many)


def test_money_and_hours_are_these_sums() -> None:
    given = CostSettings(
        rows=1e6,
        found=0.5,
        answer_kb=200,
        image_kb=20,
        cores=10,
        gbit=1,
        gpus=2,
        ingest_rate=100,
        teacher_rate=1000,
        student_rate=500,
        views=4,
        epochs=10,
        students=3,
        price={"core-hour": 0.05, "gpu-hour": 2, "gb-month": 0.02, "gb-in": 0.01},
        months=2,
    )
    ingested, cached, trained, kept = costs(given)
    assert (given.samples, given.shards) == (500_000, 100)
    # 500,000 × 200 kB through a Gbit/s take longer than ten cores of 100 a second.
    assert (ingested.hours, ingested.bound) == (pytest.approx(500_000 * 200e3 * 8 / 1e9 / 3600), "network")
    assert ingested.money == pytest.approx(10 * 0.05 * ingested.hours + 0.01 * 100)
    assert cached.hours == pytest.approx(500_000 * 5 / 2000 / 3600)
    assert trained.hours == pytest.approx(500_000 * 30 / 1000 / 3600)
    assert trained.money == pytest.approx(2 * 2 * trained.hours)
    assert kept.money == pytest.approx(2 * 0.02 * (ingested.stored + cached.stored) / 1e9)
    # Four views and a caption of 768 numbers of two bytes.
    assert cached.stored == pytest.approx(500_000 * 5 * 768 * 2, rel=0.03)


def test_large_files_go_up_in_parts() -> None:
    def puts(image_kb: float) -> int:
        stage: StageCost = costs(CostSettings(rows=10_000, found=1, image_kb=image_kb))[0]
        return stage.puts

    # Three blocks of 50 MiB and what is over, with a beginning and an end.
    assert puts(16) - puts(1) == 2 + int(np.ceil(10_000 * 19_072 / (50 << 20))) - 1


def test_what_is_not_given_stays_open(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--rows", "3.3e6", "--teacher-rate", "2000", "--price", "gpu-hour=2"]) == 0
    told = capsys.readouterr().out
    assert "3,300,000 rows, 2,640,000 samples in 330 shards" in told
    assert "hours are open without --ingest-rate, --student-rate" in told
    assert main(["plan", "--rows", "3.3e6", "--json"]) == 0
    stages = {stage["name"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert stages["cache"]["hours"] is None
    assert stages["cache"]["money"] is None
    assert stages["cache"]["stored"] > 2_640_000 * 9 * 768 * 2


def test_prices_that_nothing_has_are_refused() -> None:
    with pytest.raises(UserError, match=r"--price: there is no price 'core'\. Use core-hour, "):
        CostSettings(rows=1, price={"core": 1})
    with pytest.raises(UserError, match=r"--found is 1\.5"):
        CostSettings(rows=1, found=1.5)

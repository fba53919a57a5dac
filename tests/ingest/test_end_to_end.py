"""The command line against a real web site: every row is accounted for, and what is kept is what was served."""

from __future__ import annotations

import csv
import datetime
import hashlib
import io
import json
import shutil
import ssl
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from shards import Dataset, verify_dataset

SHARD = 10


@dataclass(frozen=True)
class Row:
    """A row of the input, and what must become of it: a cause, or the image that was served.

    `theirs` is the cause that img2dataset's engine gives, where it is another.
    """

    caption: str
    url: str
    cause: str | None = None
    body: bytes = b""
    theirs: str | None = None


@pytest.fixture(scope="module")
def tls_site(
    site_class: type[Any], start_site: Callable[[Any], Iterator[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A site whose certificate is signed by nobody but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    site = site_class()
    site.scheme = "https"
    # Shaken hands only when the connection is served, on its own thread.
    site.socket = context.wrap_socket(site.socket, server_side=True, do_handshake_on_connect=False)
    yield from start_site(site)


@pytest.fixture(scope="module")
def rows(site: Any, tls_site: Any, picture: Callable[..., bytes]) -> list[Row]:
    jpeg = picture()
    good = [
        Row(caption, site.add(f"good/{number}", body), None, body)
        for number, (caption, body) in enumerate(
            [
                ("plain", jpeg),
                ('"the cat', picture(120, 90)),
                ('sat" on the mat', picture(90, 120, "PNG")),
                ("été à Łódź 🐈 日本", picture(40, 40, "GIF")),
                ("long " * 40_000, picture(62, 62, "WEBP")),
                ("<b>markup</b> & 'more' \\ \x01", picture(64, 64, "BMP")),
                (" spaces around ", jpeg),
            ]
        )
    ]
    for number, (opt_out, cause) in enumerate(
        [
            ("noai", "opt_out"),
            ("NoIndex, nofollow", "opt_out"),
            ("clipstill: noimageai", "opt_out"),
            ("otherbot: noai", None),
            ("nofollow", None),
        ]
    ):
        url = site.add(f"robots/{number}", jpeg, X_Robots_Tag=opt_out)
        good.append(Row(f"robots {opt_out}", url, cause, jpeg))
    moved = site.add("moved", status=302, Location=site.url("good/0"))
    flaky = site.add_flaky("flaky", jpeg)
    to_file = site.add("to-file", status=302, Location="file:///etc/passwd")
    circle = site.add("circle", status=302, Location=site.url("circle"))
    return [
        *good,
        Row("moved", moved, None, jpeg),
        Row("flaky", flaky, None, jpeg),
        Row("moved to a file", to_file, "protocol", theirs="http_302"),
        Row("moved in circles", circle, "protocol", theirs="http_302"),
        Row("not there", site.url("nothing"), "http_404"),
        Row("forbidden", site.add("forbidden", status=403), "http_403"),
        Row("broken server", site.add("broken", b"oops", 500), "http_500"),
        Row("cut short", site.add_cut("cut", jpeg, len(jpeg) // 2), "incomplete"),
        Row("half an image", site.add("half", jpeg[:-60]), "truncated"),
        Row("a page", site.add("page", b"<html>not here</html>", Content_Type="image/jpeg"), "not_an_image"),
        Row("nothing", site.add("empty", b""), "not_an_image"),
        Row("silence", site.add_stall("silence", jpeg, None), "timeout"),
        Row("silence later", site.add_stall("silence-later", jpeg, 100), "timeout"),
        Row("refused", "http://127.0.0.1:1/x.jpg", "connect"),
        Row("no such host", "http://no-such-host.invalid/x.jpg", "dns"),
        Row("certificate", tls_site.add("x.jpg", jpeg), "tls"),
        Row("fat", site.add("fat", jpeg + bytes(40_000)), "too_large"),
        Row("bomb", site.add("bomb", picture(1000, 1002, "PNG")), "bomb"),
        Row("file", "file:///etc/passwd", "bad_url"),
        Row("ftp", "ftp://127.0.0.1/x.jpg", "bad_url"),
        Row("data", "data:image/png;base64,AAAA", "bad_url"),
        Row("spaces", site.add("a%20b.jpg", jpeg).replace("%20", " "), None, jpeg, "bad_url"),
        Row("letters", site.add("%C3%A4.jpg", jpeg).replace("%C3%A4", "ä"), None, jpeg, "bad_url"),
        Row("no host", "http:///x.jpg", "bad_url"),
        Row("no url", "", "bad_url"),
        Row("", site.url("no-caption"), "no_caption"),
        Row(" \x0b ", site.url("blank-caption"), "no_caption"),
        Row("plain, once more", site.url("good/0"), "duplicate"),
        Row("plain", site.url("good/0"), "duplicate"),
        # A row without a tab is kept as a caption without a URL.
        Row("malformed", "\0", "bad_row"),
    ]


@pytest.fixture(scope="module")
def run(
    rows: list[Row], clipstill: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Any]]:
    """`run(*options)`: ingests the rows to a new folder; the folder and the finished process."""
    listing = tmp_path_factory.mktemp("input") / "list.tsv"
    lines = [row.caption if row.url == "\0" else f"{row.caption}\t{row.url}" for row in rows]
    listing.write_bytes("".join(f"{line}\n" for line in lines).encode())

    def ingest(*options: str) -> tuple[Path, Any]:
        out = tmp_path_factory.mktemp("out") / "set"
        chosen = ["--format", "cc3m", "--name", "set", "--out", out, "--shard-size", SHARD, "--image-size", 48]
        limits = ["--deadline", 3, "--connect-timeout", 1, "--max-bytes", 30_000, "--max-pixels", 10**6]
        limits += [] if "--retries" in options else ["--retries", 1]
        return out, clipstill("ingest", listing, *chosen, *limits, "--allow-address", "127.0.0.1", *options)

    return ingest


@pytest.fixture(scope="module")
def here(run: Callable[..., tuple[Path, Any]]) -> tuple[Path, Any]:
    """Everything in one process."""
    return run("--in-process", "--connections", "16")


def only_progress(told: str, work: str) -> bool:
    """Whether nothing is told but how far it is: how often depends on the clock."""
    return all(line.startswith(f"{work}: ") and " shards" in line for line in told.splitlines())


def ledger(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def shards_of(rows: list[Row]) -> list[list[Row]]:
    """Each with `SHARD` rows that are asked for, and those up to the next one that is."""
    shards: list[list[Row]] = [[]]
    asked = 0
    for row in rows:
        if row.url.strip() and row.cause not in {"duplicate", "bad_row"}:
            if asked == SHARD:
                shards.append([])
                asked = 0
            asked += 1
        shards[-1].append(row)
    return shards


def test_the_command_says_what_became_of_the_rows_and_nothing_else(here: tuple[Path, Any], rows: list[Row]) -> None:
    out, done = here
    causes = Counter(row.cause for row in rows if row.cause)
    shards = len(shards_of(rows))
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"ingest: {shards}/{shards} shards")
    assert only_progress(done.stderr, "ingest")
    first, *middle, hint, last = done.stdout.splitlines()
    assert hint.startswith("bad_row: error_message in the ledger names each one's line and fault")
    failed = causes.total() - causes["duplicate"]
    assert first == f"{len(rows)} rows: {len(rows) - causes.total()} samples, {failed} failed, 2 duplicates"
    del causes["duplicate"]
    assert {line.split()[1]: int(line.split()[0]) for line in middle} == causes
    assert last == f"{shards} shards made, 0 were there already, in {out}"


def test_every_row_is_in_the_ledger_with_its_cause(here: tuple[Path, Any], rows: list[Row]) -> None:
    table = ledger(here[0])
    assert [row["key"] for row in table] == [f"set-{number:09d}" for number in range(len(rows))]
    assert [row["caption"] for row in table] == [row.caption for row in rows]
    assert [row["url"] for row in table] == [None if row.url == "\0" else row.url for row in rows]
    assert [(row["caption"][:20], row["error_class"]) for row in table] == [
        (row.caption[:20], row.cause) for row in rows
    ]
    for row in table:
        assert (row["status"] == "success") == (row["error_class"] is None) == (row["error_message"] is None)
        assert row["status"] in {"success", "failed_to_download", "failed_to_resize", "duplicate"}
        assert (row["duplicate_of"] == "set-000000000") == (row["error_class"] == "duplicate")


def test_every_fetch_has_its_place_size_and_time(here: tuple[Path, Any], rows: list[Row]) -> None:
    for row, given in zip(ledger(here[0]), rows, strict=True):
        if row["error_class"] in {"no_caption", "duplicate"} or not row["url"]:
            assert (row["host"], row["started"], row["attempts"]) == (None, None, None)
        elif row["error_class"] != "bad_url":
            assert row["host"] in {"127.0.0.1", "no-such-host.invalid"}
            assert 0 <= row["seconds"] < 3.5
            assert row["attempts"] in {1, 2}
            assert abs(datetime.datetime.now(datetime.UTC) - row["started"]) < datetime.timedelta(minutes=10)
        if row["status"] == "success":
            assert row["bytes"] == len(given.body)


def test_a_samples_json_has_the_captions_of_its_duplicates(here: tuple[Path, Any]) -> None:
    first = Dataset.open(str(here[0])).shards[0]
    assert (first.caption(0), first.meta(0)["captions"]) == ("plain", '["plain, once more"]')
    assert first.meta(1)["captions"] == "[]"
    assert [row["captions"] for row in ledger(here[0])[:2]] == [["plain, once more"], None]


def test_the_tars_hold_the_successes_and_nothing_else(here: tuple[Path, Any], rows: list[Row]) -> None:
    out, _ = here
    kept = [(f"set-{number:09d}", row) for number, row in enumerate(rows) if row.cause is None]
    table = {row["key"]: row for row in ledger(out)}
    members = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            members += [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    assert [name for name, _ in members] == [f"{key}.{end}" for key, _ in kept for end in ("jpg", "txt", "json")]
    content = dict(members)
    for key, row in kept:
        assert content[f"{key}.txt"].decode() == row.caption
        meta = json.loads(content[f"{key}.json"])
        assert (meta["key"], meta["url"], meta["caption"], meta["status"]) == (key, row.url, row.caption, "success")
        original = Image.open(io.BytesIO(row.body))
        stored = Image.open(io.BytesIO(content[f"{key}.jpg"]))
        for facts in (meta, table[key]):
            assert (facts["width"], facts["height"]) == stored.size
            assert (facts["original_width"], facts["original_height"]) == original.size
            assert facts["sha256"] == hashlib.sha256(row.body).hexdigest()
        assert min(stored.size) == min(48, *original.size)
        # Shrunk by plain averaging, the original is what was stored.
        expected = np.asarray(original.convert("RGB").resize(stored.size, Image.Resampling.BOX)).astype(int)
        assert np.abs(np.asarray(stored.convert("RGB")).astype(int) - expected).mean() < 4


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's own open files
def test_others_read_the_dataset(here: tuple[Path, Any], rows: list[Row]) -> None:
    out, _ = here
    kept = [row.caption for row in rows if row.cause is None]
    dataset = Dataset.open(str(out))
    # webdataset refuses a tar without members; the shard of nothing but failures is one.
    shards = [str(out / f"{shard.id:05d}.tar") for shard in dataset.shards if shard.count]
    assert len(shards) < len(dataset.shards)
    assert [sample["txt"] for sample in webdataset.WebDataset(shards, shardshuffle=False).decode("pil")] == kept
    assert [shard.caption(row) for shard in dataset.shards for row in range(shard.count)] == kept


def test_the_dataset_is_sound(here: tuple[Path, Any], rows: list[Row], clipstill: Callable[..., Any]) -> None:
    out, _ = here
    report = verify_dataset(str(out))
    assert report.problems == ()
    assert (report.rows, report.samples) == (len(rows), sum(row.cause is None for row in rows))
    done = clipstill("shards", "verify", out)
    assert (done.returncode, done.stdout[:6]) == (0, "sound:")
    assert only_progress(done.stderr, "verify")


def test_the_statistics_are_img2datasets(here: tuple[Path, Any], rows: list[Row]) -> None:
    out, _ = here
    paths = sorted(out.glob("*_stats.json"))
    for number, (path, part) in enumerate(zip(paths, shards_of(rows), strict=True)):
        stats = json.loads(path.read_text())
        causes = Counter(row.cause for row in part if row.cause)
        assert path.name == f"{number:05d}_stats.json"
        assert stats["count"] == len(part)
        assert stats["successes"] == len(part) - causes.total()
        assert stats["failed_to_download"] + stats["failed_to_resize"] == causes.total() - causes["duplicate"]
        assert stats["status_dict"] == {"success": stats["successes"], **causes}


def test_the_agent_names_itself_and_asks_no_more_than_allowed(here: tuple[Path, Any], site: Any) -> None:
    assert here
    assert all("clipstill" in agent for agent in site.agents)
    # The first try and one more.
    assert (site.hits["/broken"], site.hits["/flaky"]) == (2, 2)


def test_ray_makes_the_same_bytes_and_keeps_to_itself(
    here: tuple[Path, Any],
    run: Callable[..., tuple[Path, Any]],
    site: Any,
    snapshot: Callable[[Path], dict[str, bytes]],
) -> None:
    site.hits["/flaky"] = 0
    out, done = run("--workers", "2", "--connections", "3")
    assert done.returncode == 0, done.stderr
    assert only_progress(done.stderr, "ingest"), done.stderr
    assert done.stdout == here[1].stdout.replace(str(here[0]), str(out))
    assert snapshot(out) == snapshot(here[0])


def test_img2datasets_engine_gives_the_same_layout_and_its_own_causes(
    run: Callable[..., tuple[Path, Any]], rows: list[Row], site: Any
) -> None:
    site.hits["/flaky"] = 0
    out, done = run("--in-process", "--engine", "img2dataset", "--retries", "0")
    assert done.returncode == 0, done.stderr
    expected = [(row.caption[:20], row.theirs or row.cause) for row in rows]
    expected[expected.index(("flaky", None))] = ("flaky", "http_503")
    assert [(row["caption"][:20], row["error_class"]) for row in ledger(out)] == expected
    assert verify_dataset(str(out)).problems == ()


def test_a_second_run_downloads_nothing(
    site: Any, picture: Callable[..., bytes], clipstill_here: Callable[..., Any], tmp_path: Path, snapshot: Any
) -> None:
    url = site.add("once", picture())
    (tmp_path / "a.csv").write_text(f"url,caption\n{url},one\n{site.url('nothing')},two\n")
    command = ("ingest", tmp_path / "a.csv", "--name", "set", "--out", tmp_path / "out", "--allow-address", "127.0.0.1")
    first = clipstill_here(*command)
    before, hits = snapshot(tmp_path / "out"), dict(site.hits)
    second = clipstill_here(*command)
    assert (first.returncode, second.returncode) == (0, 0)
    assert second.stdout.splitlines()[:-1] == first.stdout.splitlines()[:-1]
    assert second.stdout.splitlines()[-1].startswith("0 shards made, 1 were there already")
    assert site.hits == hits
    assert snapshot(tmp_path / "out") == before


def test_kept_columns_end_in_ledger_and_json(
    site: Any, picture: Callable[..., bytes], clipstill_here: Callable[..., Any], tmp_path: Path
) -> None:
    day = datetime.datetime(2020, 2, 29, 12, 30)
    kept = {
        "score": [0.5, float("nan"), None],
        "seen": [day, None, day],
        "count": pa.array([1, None, 2**40], pa.int64()),
        "tags": [["x", 'é "y"'], [], None],
        "boxes": [[[0.5, float("nan")]], None, [[]]],
        "by": [{"name": "z", "on": day}, None, {"name": None, "on": None}],
        "raw": pa.array([Decimal("1.50"), None, Decimal("2.25")]),
        "nsfw": [True, False, None],
    }
    urls = [site.add(f"kept/{number}", picture()) for number in range(3)]
    pq.write_table(pa.table({"URL": urls, "TEXT": [7, 8, 9], **kept}), tmp_path / "a.parquet")
    columns = ["--url-column", "URL", "--caption-column", "TEXT", "--keep", ",".join(kept)]
    more = ["--name", "set", "--out", tmp_path / "out", "--allow-address", "127.0.0.1"]
    done = clipstill_here("ingest", tmp_path / "a.parquet", *columns, *more)
    assert done.returncode == 0, done.stderr
    table = ledger(tmp_path / "out")
    assert [row["count"] for row in table] == [1, None, 2**40]
    assert [row["seen"] for row in table] == [day, None, day]
    (shard,) = Dataset.open(str(tmp_path / "out")).shards
    assert [shard.caption(row) for row in range(3)] == ["7", "8", "9"]

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    # As strict readers do, who know no NaN.
    metas = [json.loads(json.dumps(shard.meta(row)), parse_constant=refuse) for row in range(3)]
    assert [meta["score"] for meta in metas] == [0.5, None, None]
    assert [meta["seen"] for meta in metas] == [f"{day}.000000", None, f"{day}.000000"]
    assert [meta["count"] for meta in metas] == [1, None, 2**40]
    assert [meta["nsfw"] for meta in metas] == [True, False, None]
    # What is nested is JSON, and what the one sample has the others have: readers infer fields and types from a few.
    assert [meta["tags"] and json.loads(meta["tags"]) for meta in metas] == [["x", 'é "y"'], [], None]
    assert [meta["boxes"] and json.loads(meta["boxes"]) for meta in metas] == [[[0.5, None]], None, [[]]]
    assert json.loads(metas[0]["by"]) == {"name": "z", "on": "2020-02-29 12:30:00"}
    assert [meta["raw"] for meta in metas] == ["1.50", None, "2.25"]
    assert [meta["captions"] for meta in metas] == ["[]"] * 3
    assert [meta["exif"] for meta in metas] == ["{}"] * 3
    fields = {name: {type(meta[name]) for meta in metas} - {type(None)} for name in metas[0]}
    assert all(len(kinds) <= 1 for kinds in fields.values())
    assert all(meta.keys() == metas[0].keys() for meta in metas)


def test_a_shard_that_cannot_be_made_is_named_and_the_status_is_one(
    site: Any, picture: Callable[..., bytes], clipstill_here: Callable[..., Any], tmp_path: Path
) -> None:
    urls = [site.add(f"again/{row}", picture()) for row in range(5)]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("url", "caption"), *[(url, f"row {row}") for row, url in enumerate(urls)]])
    out = tmp_path / "out"
    options = ("--name", "set", "--out", out, "--shard-size", "2", "--allow-address", "127.0.0.1")
    command = ("ingest", tmp_path / "a.csv", *options)
    assert clipstill_here(*command).returncode == 0
    for path in [*(out / "_records").glob("*"), *out.glob("00001*")]:
        path.unlink()
    (out / "00001.tar" / "in the way").mkdir(parents=True)
    done = clipstill_here(*command)
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("clipstill: incomplete: ingest: 1 of 3 shards are missing (out/00001: IsADirectoryError")
    assert "Traceback" not in done.stderr
    report = json.loads((tmp_path / "out" / "_failures" / "00001.json").read_text())
    assert "Traceback" in report["trace"]
    assert [path.name for path in out.glob("00001*")] == ["00001.tar"]
    shutil.rmtree(out / "00001.tar")
    assert clipstill_here(*command).returncode == 0
    assert not list((tmp_path / "out" / "_failures").iterdir())
    assert len(Dataset.open(str(tmp_path / "out"))) == 5

"""Credentials are in nothing that a run leaves: not in files, not in what it says, not in what it is refused with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs

from clipstill import main
from clipstill.logs import JsonLines, Lines
from shards import UserError
from shards.causes import machines_refusal
from shards.credentials import are_in, without_credentials

KEY, SECRET, TOKEN, SIGNATURE = "AKIA16TESTTESTTEST16", "s3cr3t/of+the=store", "t0ken-of-the-session", "5a17ed51"
PRESIGNED = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={KEY}%2Fus-east-1&X-Amz-Signature={SIGNATURE}"


def test_what_signs_a_request_is_told_from_what_does_not() -> None:
    secret = [
        f"https://b.s3.amazonaws.com/x.tar?{PRESIGNED}",
        "https://a.blob.core.windows.net/c/x.tar?sv=2024-01-01&sig=abc%3D",
        "https://storage.googleapis.com/b/x?X-Goog-Signature=abc",
        "https://d.cloudfront.net/x?Policy=abc&Signature=abc&Key-Pair-Id=abc",
        "https://host/x?access_token=abc",
        "ftp://somebody:word@host/x",
        "s3://key:secret@bucket/x",
    ]
    for url in secret:
        assert are_in(url), url
        assert "abc" not in without_credentials(f"GET {url}: 403"), url
        assert "word" not in without_credentials(url).replace("password", "")
    plain = [
        "https://host/x.tar?download=true",
        "https://host/x?signal=1&tokens=3&monkey=2",
        "s3://bucket/a@b:c/x",
        "https://host/a:b@c.jpg",
        "/data/a?sig=b",
    ]
    assert [url for url in plain if "://" in url and are_in(url)] == []
    assert [without_credentials(url) for url in plain[:4]] == plain[:4]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment has credentials that look like some."""
    for name, value in (("KEY_ID", KEY), ("SECRET_ACCESS_KEY", SECRET)):
        monkeypatch.setenv(f"AWS_{name}" if name.startswith("SECRET") else f"AWS_ACCESS_{name}", value)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def leaks(text: bytes) -> list[str]:
    return [name for name in (KEY, SECRET, TOKEN, SIGNATURE) if name.encode() in text]


@pytest.mark.usefixtures("held")
def test_no_run_leaves_or_says_them(
    bucket: str, pictures: Any, tmp_path: Path, s3_endpoint: str, request: pytest.FixtureRequest
) -> None:
    """A list by a presigned URL, a dataset on a store, a store that fails, a store that refuses, a dataset adopted."""
    monkeypatch, capsys = map(request.getfixturevalue, ("monkeypatch", "capsys"))

    def clipstill(*words: str | Path) -> tuple[int, str]:
        status = main.main([str(word) for word in words])
        return status, "".join(capsys.readouterr())

    listing = pictures.write_list(tmp_path / "list.tsv", 4)
    s3fs.S3FileSystem().put_file(str(listing), f"{bucket}/list.tsv")
    signed = f"{s3_endpoint}/{bucket.removeprefix('s3://')}/list.tsv?{PRESIGNED}"
    listing.unlink()
    options = [
        "--format",
        "cc3m",
        "--name",
        "set",
        "--shard-size",
        "2",
        "--image-size",
        "16",
        "--allow-address",
        "127.0.0.1",
        "--in-process",
    ]
    out = f"{bucket}/set"
    status, said = clipstill("ingest", signed, "--out", out, *options)
    assert status == 0, said
    everything = said
    # The same list, signed anew, is the same list.
    status, said = clipstill("ingest", signed.replace(SIGNATURE, "0ther516na"), "--out", out, *options)
    assert (status, "2 were there already" in said) == (0, True), said
    everything += said
    pages = (["ingest", "report", out], ["shards", "verify", out], ["shards", "stats", out], ["status", out])
    for words in pages:
        status, said = clipstill(*words)
        assert status == 0, said
        everything += said
    # Refused: what would stand in records; and what the store, or its absence, has to say.
    tar = f"{s3_endpoint}/{bucket.removeprefix('s3://')}/set/00000.tar?{PRESIGNED}"
    for words in (
        ["shards", "adopt", tar, "--out", tmp_path / "adopted"],
        ["shards", "verify", f"s3://{KEY}:{SECRET.replace('/', '')}@bucket/set"],
        ["shards", "verify", f"{bucket}-none/set"],
    ):
        status, said = clipstill(*words)
        assert status == 2, said
        everything += said.replace(SECRET.replace("/", ""), SECRET)
    assert not (tmp_path / "adopted").exists()
    status, said = clipstill("shards", "adopt", f"{out}/0000*.tar", "--out", tmp_path / "adopted", "--in-process")
    assert status == 0, said
    everything += said
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    status, said = clipstill("status", f"{bucket}-never-asked/set")
    assert status == 2, said
    everything += said
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    assert leaks(everything.encode()) == [], everything
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    left = {name: store.cat_file(name) for name in store.find(bucket)}
    left |= {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {name: leaks(data) for name, data in left.items() if leaks(data)} == {}
    assert b"X-Amz-Signature=***" in left[f"{bucket.removeprefix('s3://')}/set/dataset.json"]


@pytest.mark.usefixtures("held")
def test_errors_and_logs_that_quote_them_do_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for make in (
        lambda: UserError(f"403 for https://h/x?{PRESIGNED}", where=f"s3://{KEY}/x", do=f"Use {SECRET}"),
        lambda: machines_refusal(OSError(f"GET https://h/x?{PRESIGNED}")),
    ):
        error = make()
        assert leaks(f"{error} {error.problem} {error.where} {error.do}".encode()) == []
    record = logging.LogRecord("shards", logging.WARNING, "", 0, "try %s", (f"https://h/x?{PRESIGNED}",), None)
    for lines in (Lines("%(message)s"), JsonLines()):
        assert leaks(lines.format(record).encode()) == []

    def mistaken(*_: object) -> int:
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr(main, "main", mistaken)
    monkeypatch.setattr(main.os, "_exit", lambda _: None)
    main.run()
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert leaks(said.encode()) == []

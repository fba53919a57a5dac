"""Rows that failed but may pass are fetched again, into new shards, and nothing that is there is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shards import Dataset, UserError, verify_dataset

COMMON = ("--name", "set", "--shard-size", "4", "--allow-address", "127.0.0.1", "--retries", "0", "--keep", "label")


def answers(body: bytes, bad: int, status: int = 503) -> Callable[[Any], None]:
    """A page that fails `bad` times before it comes."""

    def answer(handler: Any) -> None:
        fails = handler.server.hits[handler.path] <= bad
        handler.send_response(status if fails else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture
def listing(site: Any, picture: Callable[..., bytes], tmp_path: Path) -> Path:
    """Ten rows: four come at once, three on the second try, one on the third, one never, one is gone for good."""
    bad = [0, 1, 0, 1, 2, 99, 0, 1, 0]
    urls = []
    for row, times in enumerate(bad):
        path = f"{tmp_path.name}/{row}"
        urls.append(site.add_answer(path, answers(picture(), times)))
    urls.append(site.url("gone"))
    lines = [f"{url},caption {row},label {row}" for row, url in enumerate(urls)]
    (tmp_path / "list.csv").write_text("\n".join(["url,caption,label", *lines]) + "\n")
    return tmp_path / "list.csv"


def ledger(out: Path) -> list[list[tuple[str, str | None]]]:
    """Of each shard, its rows: key and cause."""
    tables = [pq.read_table(path) for path in sorted(out.glob("*.parquet"))]
    return [list(zip(t["key"].to_pylist(), t["error_class"].to_pylist(), strict=True)) for t in tables]


def key(row: int) -> str:
    return f"set-{row:09d}"


def test_rounds_go_on_until_nothing_comes(
    listing: Path, clipstill_here: Callable[..., Any], snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    out = listing.parent / "out"
    first = clipstill_here("ingest", listing, "--out", out, *COMMON)
    assert first.stdout.startswith("10 rows: 4 samples, 6 failed")
    before = snapshot(out)
    done = clipstill_here("ingest retry", out, "--allow-address", "127.0.0.1", "--retries", "0")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "rows" in line]
    assert said == ["5 rows: 3 samples, 2 failed", "2 rows: 1 samples, 1 failed", "1 rows: 0 samples, 1 failed"]
    after = snapshot(out)
    # What was there stands, but for the manifest, which is derived.
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"_records/manifest.jsonl"}
    assert ledger(out) == [
        [(key(0), None), (key(1), "http_503"), (key(2), None), (key(3), "http_503")],
        [(key(4), "http_503"), (key(5), "http_503"), (key(6), None), (key(7), "http_503")],
        [(key(8), None), (key(9), "http_404")],
        [(key(1), None), (key(3), None), (key(4), "http_503"), (key(5), "http_503")],
        [(key(7), None)],
        [(key(4), None), (key(5), "http_503")],
        [(key(5), "http_503")],
    ]
    dataset = Dataset.open(str(out))
    samples = {name: shard.meta(row) for shard in dataset.shards for row, name in enumerate(shard.keys)}
    assert sorted(samples) == [key(row) for row in (0, 1, 2, 3, 4, 6, 7, 8)]
    assert all(meta["label"] == f"label {int(name[-2:])}" for name, meta in samples.items())
    assert verify_dataset(str(out)).problems == ()
    # The first command still finds its own shards, and asks for nothing.
    again = clipstill_here("ingest", listing, "--out", out, *COMMON)
    assert again.stdout.splitlines()[-1].startswith("0 shards made, 3 were there already")


def test_a_killed_round_is_finished_first(listing: Path, clipstill_here: Callable[..., Any]) -> None:
    out = listing.parent / "out"
    clipstill_here("ingest", listing, "--out", out, *COMMON)
    assert clipstill_here("ingest retry", out, "--allow-address", "127.0.0.1", "--retries", "0").returncode == 0
    whole = ledger(out)
    # As if killed between the second shard's payload and its record, before the next round was planned.
    for path in [*out.glob("_records/0000[456].*"), *out.glob("_rounds/00[23].json"), *out.glob("0000[56]*")]:
        path.unlink()
    done = clipstill_here("ingest retry", out, "--allow-address", "127.0.0.1", "--retries", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "5 rows: 4 samples, 1 failed" or done.stdout.startswith("5 rows")
    assert ledger(out)[:5] == whole[:5]
    assert verify_dataset(str(out)).problems == ()


def test_nothing_to_fetch_again_is_said(
    site: Any, picture: Callable[..., bytes], clipstill_here: Callable[..., Any], tmp_path: Path
) -> None:
    url = site.add("fine", picture())
    (tmp_path / "a.csv").write_text(f"url,caption\n{url},one\n{site.url('gone')},two\n")
    out = tmp_path / "out"
    clipstill_here("ingest", tmp_path / "a.csv", "--out", out, *COMMON[:6])
    done = clipstill_here("ingest retry", out)
    assert (done.returncode, done.stdout) == (0, "nothing to fetch again: no row failed that may pass\n")


def test_what_was_blocked_comes_along_once_its_address_is_allowed(
    site: Any, picture: Callable[..., bytes], clipstill_here: Callable[..., Any], tmp_path: Path
) -> None:
    """Though it failed rounds ago; and once only, but for what was blocked again since."""
    late = site.add_answer(f"{tmp_path.name}/late", answers(picture(), 2))
    urls = [site.add(f"{tmp_path.name}/{row}", picture()) for row in range(2)]
    urls += [late, "http://127.0.0.2:9/x.jpg", "http://nowhere.invalid/x.jpg"]
    (tmp_path / "a.csv").write_text("\n".join(["url,caption", *(f"{url},one" for url in urls)]) + "\n")
    out = tmp_path / "out"

    def said(command: str, *options: str | Path) -> list[str]:
        done = clipstill_here(command, *options, "--retries", "0")
        # A dataset of which nothing has come is no success.
        sampled = any(row[1] is None for shard in ledger(out) for row in shard)
        assert done.returncode == (not sampled), done.stderr
        hints = [line for line in done.stdout.splitlines() if f"clipstill ingest retry {out} --allow-address" in line]
        assert len(hints) == ("blocked_address" in done.stdout)
        return [line for line in done.stdout.splitlines() if "rows: " in line]

    again = ("ingest retry", out)
    made = said("ingest", tmp_path / "a.csv", "--out", out, "--name", "set", "--shard-size", "3")
    assert made == ["5 rows: 0 samples, 5 failed"]
    assert said(*again) == ["1 rows: 0 samples, 1 failed"]
    allowed = said(*again, "--allow-address", "127.0.0.1")
    assert allowed == ["5 rows: 2 samples, 3 failed", "2 rows: 0 samples, 2 failed"]
    assert sorted(row for shard in ledger(out)[3:-1] for row in shard) == [
        (key(0), None),
        (key(1), None),
        (key(2), "http_503"),
        (key(3), "blocked_address"),
        (key(4), "dns"),
    ]
    # Without it the server that was unwell is blocked in its turn.
    assert said(*again) == ["2 rows: 0 samples, 2 failed"]
    allowed = said(*again, "--allow-address", "127.0.0.1")
    assert allowed == ["2 rows: 1 samples, 1 failed", "1 rows: 0 samples, 1 failed"]
    # Of another address nobody has asked yet.
    assert said(*again, "--allow-address", "10.9.9.9") == ["2 rows: 0 samples, 2 failed"]
    dataset = Dataset.open(str(out))
    assert sorted(name for shard in dataset.shards for name in shard.keys) == [key(0), key(1), key(2)]
    assert verify_dataset(str(out)).problems == ()


def test_an_unfinished_ingest_is_finished_first(listing: Path, clipstill_here: Callable[..., Any]) -> None:
    out = listing.parent / "out"
    clipstill_here("ingest", listing, "--out", out, *COMMON)
    next(out.glob("_records/00001.*")).unlink()
    done = clipstill_here("ingest retry", out)
    assert (done.returncode, done.stdout) == (2, "")
    assert "1 of 3 shards are missing" in done.stderr
    assert clipstill_here("ingest retry", out.parent / "nowhere").returncode == 2


def test_images_are_made_as_the_first_time(
    site: Any, picture: Callable[..., bytes], clipstill_here: Callable[..., Any], tmp_path: Path
) -> None:
    url = site.add_answer(f"{tmp_path.name}/late", answers(picture(), 1))
    (tmp_path / "a.csv").write_text(f"url,caption,label\n{url},one,x\n")
    out = tmp_path / "out"
    image = ("--image-size", "24", "--resize-mode", "center_crop", "--image-format", "png", "--quality", "3")
    clipstill_here("ingest", tmp_path / "a.csv", "--out", out, *COMMON, *image)
    assert clipstill_here("ingest retry", out, "--allow-address", "127.0.0.1").returncode == 0
    shards = Dataset.open(str(out)).shards
    assert [shard.count for shard in shards] == [0, 1]
    meta = shards[1].meta(0)
    assert (meta["width"], meta["height"]) == (24, 24)
    assert shards[1].image_bytes(0).startswith(b"\x89PNG")
    assert json.loads((out / "_rounds" / "001.json").read_text())["rows"] == 1


def test_a_shard_made_again_leaves_its_rounds_rows_alone(listing: Path, clipstill_here: Callable[..., Any]) -> None:
    out = listing.parent / "out"
    clipstill_here("ingest", listing, "--out", out, *COMMON)
    clipstill_here("ingest retry", out, "--allow-address", "127.0.0.1", "--retries", "0")
    samples = len(Dataset.open(str(out)))
    next(out.glob("_records/00000.*")).unlink()
    again = clipstill_here("ingest", listing, "--out", out, *COMMON)
    assert again.returncode == 0, again.stderr
    assert ledger(out)[0] == [(key(0), None), (key(1), "other"), (key(2), None), (key(3), "other")]
    assert len(Dataset.open(str(out))) == samples
    assert verify_dataset(str(out)).problems == ()


def test_a_hole_in_an_early_round_is_mended_by_the_same_command(
    listing: Path, clipstill_here: Callable[..., Any]
) -> None:
    out = listing.parent / "out"
    clipstill_here("ingest", listing, "--out", out, *COMMON)
    clipstill_here("ingest retry", out, "--allow-address", "127.0.0.1", "--retries", "0")
    next(out.glob("_records/00003.*")).unlink()
    with pytest.raises(UserError, match="Run the same `clipstill ingest retry` again"):
        Dataset.open(str(out))
    assert clipstill_here("ingest retry", out, "--allow-address", "127.0.0.1", "--retries", "0").returncode == 0
    assert len(Dataset.open(str(out))) == 8


def test_a_lost_ledger_is_one_line(listing: Path, clipstill_here: Callable[..., Any]) -> None:
    out = listing.parent / "out"
    clipstill_here("ingest", listing, "--out", out, *COMMON)
    (out / "00001.parquet").unlink()
    done = clipstill_here("ingest retry", out)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "1 of 3 shards are missing. Run the same `clipstill ingest` command again" in done.stderr

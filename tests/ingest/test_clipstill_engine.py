"""Our own engine: decoding that cannot keep up is no server's fault, and what waits for it is bounded."""

from __future__ import annotations

import http.server
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ingest.engines.clipstill_engine import ClipstillEngine
from ingest.fetched import Fetched, Request
from ingest.settings import ImageSettings, IngestSettings, NetworkSettings, SourceSettings

Picture = Callable[..., bytes]


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def engine(**network: Any) -> ClipstillEngine:
    return ClipstillEngine(
        IngestSettings(
            source=SourceSettings(paths=("list.parquet",)),
            out="out",
            name="x",
            image=ImageSettings(size=64, exact=True),
            network=NetworkSettings(**{"allow_addresses": ("127.0.0.1",), "retries": 0, **network}),
        )
    )


def fetch(urls: list[str], **network: Any) -> list[Fetched]:
    ours = engine(**network)
    results = dict(ours.fetch([Request(url, None) for url in urls]))
    ours.close()
    return [results[place] for place in range(len(urls))]


@pytest.mark.usefixtures("one_thread")
def test_images_that_take_long_to_decode_make_nothing_late(site: Any, picture: Picture) -> None:
    """Many seconds of decoding, at a deadline of two: half of the answers come in the middle of it."""
    heavy = picture(3600, 3600, "PNG")
    all_asked = threading.Barrier(24)

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        all_asked.wait(60)
        if handler.path.startswith("/late"):
            site.closing.wait(0.4)
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(heavy)

    urls = [site.add_answer(f"{when}/{number}", answer) for when in ("early", "late") for number in range(12)]
    more = [site.add(f"more/{number}", heavy) for number in range(6)]
    results = fetch([*urls, *more], connections=24, deadline=2)
    assert [result.error_class for result in results] == [None] * 30


@pytest.mark.usefixtures("one_thread")
def test_no_more_is_fetched_than_is_soon_decoded(site: Any, picture: Picture) -> None:
    """Eight bodies may wait for the thread, and then as many come as were under way."""
    heavy = picture(2000, 2000, "PNG")
    urls = [site.add(f"many/{number}", heavy) for number in range(60)]
    ours = engine(connections=4)
    done = most = 0
    for _, result in ours.fetch([Request(url, None) for url in urls]):
        assert result.error_class is None
        asked = sum(path.startswith("/many") for path in site.hits)
        most = max(most, asked - done)
        done += 1
    ours.close()
    assert done == 60
    assert 8 <= most <= 8 + 4


def test_bodies_and_failures_come_with_their_places(site: Any, picture: Picture) -> None:
    urls = [site.add("good", picture()), site.add("gone", b"", 404), site.add("text", b"text"), "nonsense"]
    assert [result.error_class for result in fetch(urls)] == [None, "http_404", "not_an_image", "bad_url"]


def test_who_stops_early_may_begin_again(site: Any, picture: Picture) -> None:
    requests = [Request(site.add(f"stop/{number}", picture()), None) for number in range(40)]
    ours = engine(connections=4)
    for _ in range(3):
        for _, result in ours.fetch(requests):
            assert result.error_class is None
            break
    assert sorted(place for place, _ in ours.fetch(requests)) == list(range(40))
    ours.close()


def test_several_callers_get_their_own_results_and_the_first_has_precedence(site: Any, picture: Picture) -> None:
    """Two rows of the first that hang hold up nobody; the second's begin when all of the first's have."""
    go = threading.Event()
    order: list[str] = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        order.append(handler.path)
        if "hangs" in handler.path:
            go.wait(60)
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(picture())

    first = [site.add_answer(f"a/{'hangs' if n in {3, 7} else 'good'}/{n}", answer) for n in range(30)]
    second = [site.add_answer(f"b/{n}", answer) for n in range(30)]
    ours = engine(connections=4)
    one: list[tuple[int, Fetched]] = []
    asker = threading.Thread(target=lambda: one.extend(ours.fetch([Request(url) for url in first])))
    asker.start()
    while not order:
        time.sleep(0.01)
    two = list(ours.fetch([Request(url) for url in second]))
    go.set()
    asker.join()
    ours.close()
    assert sorted(place for place, _ in one) == sorted(place for place, _ in two) == list(range(30))
    assert {result.error_class for _, result in [*one, *two]} == {None}
    assert {place for place, _ in one[-2:]} == {3, 7}
    # The second's follow as connections become free.
    assert max(order.index(f"/a/good/{n}") for n in range(30) if n not in {3, 7}) < 30 + 4


def test_who_takes_nothing_holds_up_no_more_than_may_wait(site: Any, picture: Picture) -> None:
    """One caller sits on its results: others go on, as long as few bodies wait."""
    requests = [Request(site.add(f"sits/{number}", picture())) for number in range(6)]
    more = [Request(site.add(f"goes/{number}", picture())) for number in range(40)]
    ours = engine(connections=4)
    sits = ours.fetch(requests)
    next(sits)
    assert len(list(ours.fetch(more))) == 40
    assert len(list(sits)) == 5
    ours.close()


def test_what_breaks_the_fetching_reaches_every_caller_and_then_it_goes_on(
    site: Any, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled = [Request(site.add_stall("breaks", b"x", 0))]
    good = [Request(site.add("whole", picture()))]
    ours = engine()
    errors: list[BaseException] = []

    def ask() -> None:
        with pytest.raises(OSError, match="no disk") as caught:
            list(ours.fetch(stalled))
        errors.append(caught.value)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    while site.hits.get("/breaks", 0) < 2:
        time.sleep(0.01)

    def broken(*_: Any, **__: Any) -> Any:
        monkeypatch.undo()
        raise OSError("no disk")

    monkeypatch.setattr(type(ours._fetcher), "poll", broken)
    ours.forget_failures()
    for asker in askers:
        asker.join()
    assert len(errors) == 2
    assert [result.error_class for _, result in ours.fetch(good)] == [None]
    ours.close()


def test_what_breaks_again_when_it_is_cleared_away_does_not_end_the_fetching(
    site: Any, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = engine()
    fetcher = type(ours._fetcher)
    close = fetcher.close

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("no disk")

    def close_and_break(it: Any) -> None:
        close(it)
        monkeypatch.undo()
        raise OSError("nor anything else")

    monkeypatch.setattr(fetcher, "poll", broken)
    monkeypatch.setattr(fetcher, "close", close_and_break)
    with pytest.raises(OSError, match="no disk"):
        list(ours.fetch([Request(site.add_stall("cleared", b"x", 0))]))
    assert [result.error_class for _, result in ours.fetch([Request(site.add("sound", picture()))])] == [None]
    ours.close()


def test_closing_ends_those_who_wait(site: Any) -> None:
    ours = engine()
    failed: list[BaseException] = []

    def ask() -> None:
        with pytest.raises(RuntimeError, match="closed") as caught:
            list(ours.fetch([Request(site.add_stall("for-ever", b"x", 0))]))
        failed.append(caught.value)

    asker = threading.Thread(target=ask)
    asker.start()
    while "/for-ever" not in site.hits:
        time.sleep(0.01)
    ours.close()
    asker.join()
    assert len(failed) == 1
    with pytest.raises(RuntimeError, match="closed"):
        next(ours.fetch([Request("http://127.0.0.1/x")]))


@pytest.mark.parametrize(
    ("given", "threads"),
    [("3", 3), ("4,2", 4), (" 2 , 1", 2), ("0", None), ("", None), ("many", None), ("-1", None)],
)
def test_threads_are_what_openmp_would_take(monkeypatch: pytest.MonkeyPatch, given: str, threads: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    ours = engine()
    assert ours._threads == (threads or os.cpu_count())
    ours.close()

"""When nothing comes through, the run stops and says why; when it comes back, no row is lost to the outage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence

import pytest

from ingest.fetched import Fetched, Request
from ingest.outage import OutageDetector, ShardOutage
from shards import UserError

PROGRAM = """
import io, os, tempfile, threading
from own_network import Resolver, begin, serve
from PIL import Image
import ingest.outage, ingest.preflight
from clipstill.main import main

# What is waited for here is never there in the end.
ingest.outage._PAUSE_S, ingest.preflight._PATIENCE_S = 0.2, 1.0
begin("93.184.216.34", "93.184.216.35")
body = io.BytesIO()
Image.new("RGB", (20, 20), (200, 30, 30)).save(body, "JPEG")
picture = (200, {{}}, body.getvalue())
portal = (200, {{}}, b"<html>Please pay for your room</html>")
forbidden = (403, {{}}, b"no")
os.chdir(tempfile.mkdtemp())
with open("list.csv", "w") as file:
    print("url,caption", *(f"http://host{{n}}.example/x.jpg,row {{n}}" for n in range(60)), sep=chr(10), file=file)
{setting}
command = "ingest list.csv --name set --out out --in-process --retries 0 --deadline {deadline} {options}"
print("status", main(command.split()))
print("shards", len(list(os.scandir("out/_records"))) if os.path.exists("out/_records") else 0)
"""

Run = Callable[[str], str]


def outcome(run: Run, setting: str, options: str = "", deadline: float = 30) -> tuple[int, int, str]:
    """Exit status, files in `_records`, everything said. `deadline` is what it costs where nobody answers."""
    program = PROGRAM.format(setting=setting, options=options, deadline=deadline)
    out = run(program + "\n").splitlines()
    status, shards = (int(line.split()[1]) for line in out if line.startswith(("status", "shards")))
    return status, shards, "\n".join(out)


CATCH = "import sys; sys.stderr = sys.stdout\n"


def test_a_dead_resolver_stops_the_run(in_own_network: Run) -> None:
    status, shards, said = outcome(in_own_network, CATCH, deadline=1)  # nobody answers on port 53
    assert (status, shards) == (2, 0)
    assert "nothing comes through: 60 rows failed" in said
    assert "Probably no name can be resolved: the resolver is down or overloaded" in said
    assert "--no-stop" in said


def test_a_portal_that_answers_for_everybody_stops_the_run(in_own_network: Run) -> None:
    setting = CATCH + 'Resolver(lambda name: ["93.184.216.34"]); serve("93.184.216.34", {"/x.jpg": portal})'
    status, shards, said = outcome(in_own_network, setting)
    assert (status, shards) == (2, 0)
    assert "a proxy or portal is in the way" in said


def test_names_that_all_point_inside_stop_the_run(in_own_network: Run) -> None:
    setting = CATCH + 'Resolver(lambda name: ["10.0.0.1"])'
    status, shards, said = outcome(in_own_network, setting)
    assert (status, shards) == (2, 0)
    assert "--allow-address" in said


def test_a_host_that_refuses_everything_is_that_hosts_affair(in_own_network: Run) -> None:
    """All rows 403, but from one server of many names at work: nine hosts at most may answer alike."""
    setting = (
        CATCH
        + """
open("list.csv", "w").write(
    "url,caption" + chr(10) + "".join(f"http://host{n % 9}.example/{n}.jpg,row {n}" + chr(10) for n in range(60))
)
Resolver(lambda name: ["93.184.216.34"])
serve("93.184.216.34", {f"/{n}.jpg": forbidden for n in range(60)})
"""
    )
    status, shards, said = outcome(in_own_network, setting)
    assert (status, shards) == (1, 2), said
    assert "60  http_403" in said


def test_it_can_be_switched_off(in_own_network: Run) -> None:
    status, shards, said = outcome(in_own_network, CATCH, "--no-stop", deadline=1)
    assert (status, shards) == (1, 2), said
    assert "60  dns" in said


def test_an_outage_that_passes_costs_no_row(in_own_network: Run) -> None:
    """The resolver comes up while the run waits to make sure."""
    setting = (
        CATCH
        + """
serve("93.184.216.34", {"/x.jpg": picture})
import ingest.outage
confirm = ingest.outage.ShardOutage.confirm
def up_again(watch, engine):
    Resolver(lambda name: ["93.184.216.34"])
    confirm(watch, engine)
ingest.outage.ShardOutage.confirm = up_again
"""
    )
    status, shards, said = outcome(in_own_network, setting, deadline=3)
    assert (status, shards) == (0, 2), said
    assert "60 rows: 60 samples, 0 failed" in said


GONE = (
    CATCH
    + """
with open("list.csv", "w") as file:
    names = [f"good{n}" for n in range(50)] + [f"gone{n}" for n in range(60)]
    print("url,caption", *(f"http://{name}.example/x.jpg,{name}" for name in names), sep=chr(10), file=file)
Resolver(lambda name: ["93.184.216.34"] if "good" in name else [])
serve("93.184.216.34", {"/x.jpg": picture})
"""
)
"""Fifty hosts that answer, then sixty that are gone."""


def test_dead_links_are_no_outage_where_others_answer(in_own_network: Run) -> None:
    """A shard of nothing but names that do not exist says something of those names."""
    status, _, said = outcome(in_own_network, GONE, "--shard-size 50")
    assert status == 0, said
    assert "110 rows: 50 samples, 60 failed" in said


def test_a_round_of_nothing_but_dead_links_ends_the_retry(in_own_network: Run) -> None:
    program = PROGRAM.format(setting=GONE, options="", deadline=30)
    said = in_own_network(program + 'print("again", main("ingest retry out --in-process".split()))')
    assert "110 rows: 50 samples, 60 failed" in said
    assert "60 rows: 0 samples, 60 failed" in said
    assert said.splitlines()[-1] == "again 0"


class Engine:
    """Answers or does not, as `alive` says; how often it was told to forget."""

    def __init__(self, *, alive: bool) -> None:
        self.alive, self.forgotten = alive, 0

    def fetch(self, requests: Sequence[Request], *, careful: bool = False) -> Generator[tuple[int, Fetched]]:  # noqa: ARG002
        for place, _ in enumerate(requests):
            yield place, Fetched(error_class=None if self.alive else "connect")

    def forget_failures(self) -> None:
        self.forgotten += 1

    def close(self) -> None:
        pass


def fail(shard: ShardOutage, rows: range) -> bool:
    collapsed = False
    for number in rows:
        request = Request(f"http://host{number}.example/")
        collapsed = shard.see(request, Fetched(error_class="connect", host=f"host{number}.example"))
    return collapsed


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.outage._PAUSE_S", 0)


@pytest.mark.usefixtures("at_once")
def test_an_outage_spoils_every_open_shard_that_has_rows_of_it() -> None:
    """Three shards are open; each of two has some of the thousand rows that failed, the third none."""
    watch, engine = OutageDetector(), Engine(alive=True)
    with watch.shard() as one, watch.shard() as two, watch.shard() as three:
        three.see(Request("http://good.example/"), Fetched(host="good.example"))
        assert not fail(one, range(500))
        assert fail(two, range(500, 1000))
        with pytest.raises(OSError, match="none of 1000 rows came through"):
            two.confirm(engine)
        with pytest.raises(OSError, match="none of 1000 rows came through"):
            one.finish()
        assert not three.finish()
    assert engine.forgotten
    with watch.shard() as again:
        assert not fail(again, range(40))
        assert not again.finish()


@pytest.mark.usefixtures("at_once")
def test_a_dead_network_stops_every_open_shard() -> None:
    watch = OutageDetector()
    with watch.shard() as one, watch.shard() as two:
        fail(one, range(10))
        fail(two, range(100))
        assert two.finish()
        with pytest.raises(UserError, match="nothing comes through: 100 rows"):
            two.confirm(Engine(alive=False))
        with pytest.raises(UserError, match="nothing comes through"):
            fail(one, range(1))


@pytest.mark.usefixtures("at_once")
def test_one_shards_trial_is_waited_for() -> None:
    """A shard whose rows failed in the meantime is not finished before it is known why."""
    watch = OutageDetector()
    asked, go = threading.Event(), threading.Event()

    class Waiting(Engine):
        def forget_failures(self) -> None:
            asked.set()
            go.wait(60)

    ended: list[str] = []

    def try_one(shard: ShardOutage) -> None:
        with pytest.raises(OSError, match="came through"):
            shard.confirm(Waiting(alive=True))
        ended.append("trial")

    def finish_other(shard: ShardOutage) -> None:
        with pytest.raises(OSError, match="came through"):
            shard.finish()
        ended.append("finish")

    with watch.shard() as one, watch.shard() as two:
        fail(one, range(60))
        trial = threading.Thread(target=try_one, args=(one,))
        trial.start()
        asked.wait(60)
        fail(two, range(60, 70))
        other = threading.Thread(target=finish_other, args=(two,))
        other.start()
        go.set()
        trial.join()
        other.join()
    assert sorted(ended) == ["finish", "trial"]

"""Names that nobody answers for, and hosts that swallow connections: they cost their own rows and no others."""

from __future__ import annotations

from collections.abc import Callable

from ingest.fetch.circuit_breaker import CircuitBreakers

Run = Callable[[str], str]

START = """
import collections, time
from own_network import Resolver, begin, serve, swallow, wait_for_answers
from ingest import NetworkSettings
from ingest.fetch import Fetcher
begin("93.184.216.34")
swallow()
asked = serve("93.184.216.34", {f"/{n}": (200, {}, b"x") for n in range(1000)})

def fetch(fetcher, urls):
    for ticket, url in enumerate(urls):
        fetcher.start(ticket, url)
    answers = {}
    while fetcher.pending:
        answers.update(fetcher.poll(1))
    return [answers[ticket] for ticket in range(len(urls))]

def causes(answers):
    return dict(collections.Counter(answer.error_class for answer in answers))
"""


def test_names_without_an_answer_cost_no_good_row(in_own_network: Run) -> None:
    """Eighty of four seconds each: one after the other on twenty threads, that were a good row's whole deadline."""
    program = """
resolver = Resolver(lambda name: ["93.184.216.34"], silent=lambda name: name.startswith("dead"))
names = [f"{'dead' if n % 5 == 0 else 'good'}{n // 2 * 2}.example" for n in range(400)]
fetcher = Fetcher(NetworkSettings(deadline=5, connect_timeout=1, retries=2), 1000)
began = time.monotonic()
answers = fetch(fetcher, [f"http://{name}/{n}" for n, name in enumerate(names)])
good = [answer for answer, name in zip(answers, names) if name.startswith("good")]
dead = [answer for answer, name in zip(answers, names) if name.startswith("dead")]
print(causes(good), causes(dead), {answer.error_message for answer in dead}, {answer.attempts for answer in dead})
print(time.monotonic() - began < 15)
# Neither of them is asked for again.
before = dict(resolver.asked)
answers = fetch(fetcher, ["http://dead0.example/1", "http://good2.example/2"])
print(causes(answers), resolver.asked == before)
fetcher.forget_failures()
print(causes(fetch(fetcher, ["http://dead0.example/1", "http://good2.example/2"])), resolver.asked["dead0.example"])
fetcher.close()
"""
    assert in_own_network(START + program).splitlines() == [
        "{None: 320} {'dns': 80} {\"the resolver gives no answer about the host's name\"} {1}",
        "True",
        "{'dns': 1, None: 1} True",
        "{'dns': 1, None: 1} 2",
    ]


def test_a_resolver_is_not_asked_more_than_it_can_answer(in_own_network: Run) -> None:
    """A hundred queries a second, two for each name: all of 600 at once would wait for twelve seconds, of the eight
    that the resolver has; 64 wait for little more than one, which a busy machine may take some times longer for.
    """
    program = """
wait_for_answers(8)
Resolver(lambda name: ["93.184.216.34"], seconds=0.01)
fetcher = Fetcher(NetworkSettings(deadline=60), 1000)
print(causes(fetch(fetcher, [f"http://host{n}.example/{n}" for n in range(600)])))
fetcher.close()
"""
    assert in_own_network(START + program) == "{None: 600}\n"


def test_names_are_found_in_the_hosts_file_too_and_gone_ones_are_said(in_own_network: Run) -> None:
    program = """
import subprocess, tempfile
with tempfile.NamedTemporaryFile("w", delete=False) as file:
    file.write("93.184.216.34 here.example" + chr(10))
subprocess.run(["mount", "--bind", file.name, "/etc/hosts"], check=True)
Resolver({})
fetcher = Fetcher(NetworkSettings(deadline=5), 1000)
names = ["here.example", "gone.example", "a..b", "x" * 70 + ".example"]
answers = fetch(fetcher, [f"http://{name}/1" for name in names])
print([(answer.error_class, answer.error_message) for answer in answers])
fetcher.close()
"""
    gone = ("dns", "the host's name has no address")
    assert in_own_network(START + program) == f"{[(None, None), gone, gone, gone]}\n"


def test_a_gone_name_is_no_more_trouble_where_robots_txt_is_asked(in_own_network: Run) -> None:
    """The second time the name is known not to exist before anybody has begun to wait for its robots.txt."""
    program = """
Resolver({"here.example": ["93.184.216.34"]})
fetcher = Fetcher(NetworkSettings(deadline=5, robots_txt=True), 1000)
print(causes(fetch(fetcher, ["http://gone.example/1"])))
print(causes(fetch(fetcher, ["http://gone.example/2", "http://here.example/3", "http://gone.example/4"])))
fetcher.close()
"""
    assert in_own_network(START + program).splitlines() == ["{'dns': 1}", "{'dns': 2, None: 1}"]


def test_of_several_addresses_one_that_answers_is_enough(in_own_network: Run) -> None:
    program = """
import socket, struct, own_network
class Two(Resolver):
    def _answer(self, query):
        answer = super()._answer(query)
        if answer[7] == 0:
            return answer
        more = struct.pack(">HHHIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton("93.184.216.34")
        return answer[:6] + struct.pack(">H", 2) + answer[8:] + more
Two(lambda name: ["5.5.1.1"])
fetcher = Fetcher(NetworkSettings(deadline=10, connect_timeout=4), 1000)
print(causes(fetch(fetcher, [f"http://two.example/{n}" for n in range(3)])))
fetcher.close()
"""
    assert in_own_network(START + program) == "{None: 3}\n"


def test_a_host_that_swallows_connections_is_soon_not_waited_for(in_own_network: Run) -> None:
    """Forty rows of it, four at a time, at a second each were ten seconds; it is three and no more."""
    program = """
settings = NetworkSettings(connect_timeout=1, deadline=10, per_host=4, retries=2)
fetcher = Fetcher(settings, 1000)
began = time.monotonic()
dead = [f"http://5.5.1.1/{n}" for n in range(40)]
good = [f"http://93.184.216.34/{n % 1000}" for n in range(600)]
for number, url in enumerate(dead):
    fetcher.start(("dead", number), url)
answers = collections.defaultdict(list)
for number in range(1000):
    # Somebody always answers: the network is not to blame.
    if number < 600:
        fetcher.start(("good", number), good[number])
    for (kind, _), answer in fetcher.poll(0.05 if fetcher.pending else 0):
        answers[kind].append(answer)
    if not fetcher.pending and number > 600:
        break
    time.sleep(0.01)
print(causes(answers["good"]), causes(answers["dead"]), {answer.attempts for answer in answers["dead"]})
print(sorted({answer.error_message for answer in answers["dead"]}))
print(sum(answer.seconds > 0.9 for answer in answers["dead"]) <= 12)
fetcher.close()
"""
    assert in_own_network(START + program).splitlines() == [
        "{None: 600} {'timeout': 40} {1}",
        "['no connection in time', 'no connection in time, as so often before: not waited for again']",
        "True",
    ]


def test_a_breaker_opens_by_tries_one_after_the_other() -> None:
    breakers = CircuitBreakers(patience=10)
    now = 100.0
    # Nobody answers: that may be our own network.
    for _ in range(9):
        breakers.timed_out("a", now, now + 10)
        now += 10
    assert not breakers.refuses("a", now)
    for _ in range(3):
        for _ in range(20):
            # Twenty at once are one try.
            breakers.connected("b", now + 5)
            breakers.timed_out("a", now, now + 10)
        assert not breakers.refuses("b", now)
        now += 10
    assert breakers.refuses("a", now)
    # After half a minute one may try again, then after a minute; a connection makes it as good as any.
    assert [breakers.refuses("a", now + 30), breakers.refuses("a", now + 31)] == [False, True]
    breakers.connected("b", now + 35)
    breakers.timed_out("a", now + 30, now + 40)
    assert [breakers.refuses("a", now + 99), breakers.refuses("a", now + 100)] == [True, False]
    breakers.connected("a", now + 101)
    assert not breakers.refuses("a", now + 101)


def test_what_answered_once_is_not_given_up_at_once() -> None:
    breakers = CircuitBreakers(patience=10)
    for now in (0.0, 10.0, 30.0, 40.0):
        breakers.connected("b", now + 5)
        breakers.timed_out("a", now, now + 10)
        if now == 10.0:
            breakers.connected("a", 25.0)
    assert not breakers.refuses("a", 50.0)

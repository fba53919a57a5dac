"""Before the download: a resolver that would hold it back is named, a good one is not mentioned."""

from __future__ import annotations

import re
from collections.abc import Callable

import pyarrow as pa

from ingest.preflight import resolver_warning

PROGRAM = """
import pyarrow as pa
from own_network import Resolver, begin
import ingest.preflight
begin()
Resolver(lambda name: [] if "gone" in name else ["10.0.0.1"], seconds={seconds})
urls = [f"http://{{'gone' if n % 7 == 0 else 'host'}}{{n // 2}}.example/{{n}}.jpg" for n in range({rows})]
print(ingest.preflight.resolver_warning(pa.table({{"url": urls}})))
"""
ROWS = 200


def test_a_slow_resolver_is_named_with_what_to_expect(in_own_network: Callable[[str], str]) -> None:
    """20 ms a query and two queries a name (A and AAAA): 25 names a second at most."""
    rows = 80
    said = in_own_network(PROGRAM.format(seconds=0.02, rows=rows))
    found = re.search(r"it answers (\d+) names a second.*expect (\d+) images a second", said)
    assert found is not None, said
    names, images = map(int, found.groups())
    assert 1 <= names <= 26
    hosts = {("gone" if n % 7 == 0 else "host", n // 2) for n in range(rows)}
    assert abs(images - names * rows / len(hosts)) < 3
    assert "caching resolver" in said


def test_names_that_nobody_answers_for_are_no_bottleneck(in_own_network: Callable[[str], str]) -> None:
    """One in ten holds its lookup for four seconds; all others are answered at once."""
    silent = 'Resolver(lambda name: ["10.0.0.1"], silent=lambda name: name[-9] == "0")'
    program = re.sub(r"Resolver\(lambda.*", silent, PROGRAM.format(seconds=0, rows=ROWS))
    assert in_own_network(program).strip() == "None"


def test_a_fast_resolver_is_not_mentioned(in_own_network: Callable[[str], str]) -> None:
    assert in_own_network(PROGRAM.format(seconds=0, rows=ROWS)).strip() == "None"


def test_no_resolver_at_all_is_said(in_own_network: Callable[[str], str]) -> None:
    program = re.sub(r"Resolver\(lambda.*", "ingest.preflight._PATIENCE_S = 1", PROGRAM.format(seconds=0, rows=ROWS))
    assert "answers for none of" in in_own_network(program)


def test_lists_of_few_hosts_and_of_addresses_ask_nobody() -> None:
    urls = [f"http://127.0.0.{n}/x.jpg" for n in range(100)] + ["http://[::1]/x", None, "nonsense", "http://[bad"]
    assert resolver_warning(pa.table({"url": pa.array(urls, pa.string())})) is None
    assert resolver_warning(pa.table({"url": [f"http://a{n}.invalid/x" for n in range(19)]})) is None

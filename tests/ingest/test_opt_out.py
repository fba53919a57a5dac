"""What sites say about being collected, in every form they say it."""

from __future__ import annotations

import time

import pytest

from ingest.fetch.opt_out import ROBOTS_BYTES, Robots, RobotsCache, agent_name, opts_out

DATE = "unavailable_after: 25 Jun 2010 15:00:00 PST"
COMMA_DATE = "unavailable_after: Friday, 25-Jun-10 15:00:00 PST"


@pytest.mark.parametrize(
    "value",
    [
        *(
            "noai",
            "noimageai",
            "noindex",
            "noimageindex",
            "none",
            "NoAI",
            "  noai  ",
            "nofollow, noai",
            "noai,nofollow",
        ),
        *("nofollow,noimageai,nosnippet", "max-snippet:50, noai", "max-snippet: 50, max-image-preview: large, noindex"),
        *("max-video-preview:-1,noai", "max-image-preview:none, noindex", f"{DATE}, noai", f"{COMMA_DATE}, noai"),
        *(f"noai, {DATE}", f"{COMMA_DATE}, max-snippet:-1, noindex", "unavailable_after: 2010-06-25T15:00:00Z, noai"),
        *("unavailable_after: June 25, 2010 15:00:00, noai", "unavailable_after: 25 Jun 2010, 15:00:00, noai"),
        *("clipstill: noai", "Clipstill: noai", "clipstill:noai", "clipstill/0.1: noai", "*: noai"),
        *(f"clipstill: {DATE}, noai", "otherbot: nofollow, clipstill: noai", "noai, otherbot: nofollow"),
        *("clipstill: nofollow, noindex", "otherbot: noindex, clipstill: max-snippet:3, noimageai", "noai; nofollow"),
        *(",,noai,,", "nofollow noai", f"{DATE} noai"),
    ],
)
def test_opt_outs_for_us(value: str) -> None:
    assert opts_out(value, "clipstill")


@pytest.mark.parametrize(
    "value",
    [
        *("", "all", "nofollow", "index, follow", "noarchive", "noaisle", "xnoai", "max-snippet:50", DATE, COMMA_DATE),
        *("max-image-preview:none", "max-image-preview: none, nofollow", "otherbot: noai", "otherbot: nofollow, noai"),
        *("otherbot: max-snippet:50, noai", f"otherbot: {DATE}, noai", f"otherbot: {COMMA_DATE}, noindex"),
        *("clipstill: nofollow, otherbot: noai", "clipstillx: noai", "xclipstill: noai", "googlebot-news: noindex"),
        *("otherbot/2.0: noai", "360spider: noai", ":", ",", "clipstill:", "clipstill: all"),
    ],
)
def test_no_opt_outs_for_us(value: str) -> None:
    assert not opts_out(value, "clipstill")


def test_a_hostile_header_is_read_quickly() -> None:
    """As long as libcurl lets a header be."""
    began = time.process_time()
    for piece in ("a:", "a: ", "1", "a", ",", "max-a:", "unavailable_after:", ": ", "a a:"):
        for end in ("", "!:", ":!", ",!:x"):
            assert not opts_out(piece * (100_000 // len(piece)) + end, "clipstill")
    assert time.process_time() - began < 20  # what grows with the square of a header takes minutes


def test_the_agents_name() -> None:
    assert agent_name("clipstill/0.1 (makes datasets)") == "clipstill"
    assert agent_name(" MyBot (x/y)") == "mybot"


RULES = """\
User-agent: otherbot
Disallow: /

User-agent: firstbot
User-agent: Clipstill  # that is us
Disallow: /private/
Disallow: /*.gif$
Allow: /private/but/

User-agent: *
Disallow: /for-nobody/
"""


@pytest.mark.parametrize(
    ("agent", "path", "allowed"),
    [
        ("clipstill", "/a.jpg", True),
        ("clipstill", "/private/a.jpg", False),
        ("clipstill", "/private/but/a.jpg", True),
        ("clipstill", "/a.gif", False),
        ("clipstill", "/a.gif?b", True),
        ("clipstill", "/for-nobody/a.jpg", True),
        ("thirdbot", "/for-nobody/a.jpg", False),
        ("thirdbot", "/private/a.jpg", True),
        ("otherbot", "/a.jpg", False),
    ],
)
def test_robots_txt_has_rules_by_agent(agent: str, path: str, *, allowed: bool) -> None:
    for text in (RULES, "\ufeff" + RULES, RULES.replace("\n", "\r\n"), RULES.replace("User-agent", "USER-AGENT")):
        assert Robots(text.encode(), agent).allows(f"http://a.b{path}") is allowed


def test_one_that_says_nothing_allows_all() -> None:
    assert Robots(b"", "clipstill").allows("http://a.b/c")
    assert Robots(b"\xff\xfe\x00binary", "clipstill").allows("http://a.b/c")


def test_what_stands_beyond_the_limit_is_not_read() -> None:
    start = b"User-agent: *\n"
    rule = b"Disallow: /x/\n"
    padding = b"#" * (ROBOTS_BYTES - len(start) - len(rule) - 1) + b"\n"
    assert not Robots(start + padding + rule, "clipstill").allows("http://a.b/x/y")
    assert Robots(start + padding + padding + rule, "clipstill").allows("http://a.b/x/y")


def test_a_hostile_robots_txt_is_dealt_with_quickly() -> None:
    """Each rule for each of many agents would be 6 million; wildcards tried one by one would never end."""
    agents = "".join(f"User-agent: a{number}\n" for number in range(1500))
    rules = "".join(f"Disallow: /{number}\n" for number in range(4000))
    wild = "User-agent: *\nDisallow: " + "/*a" * 5000 + "b\n"
    # Separators that only some readers of lines know.
    odd = agents.replace("\n", "\x0b") + rules.replace("\n", "\x0b")
    for text in (agents + rules, odd, wild):
        began = time.process_time()
        assert Robots(text.encode(), "clipstill").allows("http://a.b/" + "a" * 10_000)
        assert time.process_time() - began < 1


def test_the_cache_forgets_what_was_not_asked_for() -> None:
    cache = RobotsCache()
    big = b"#" * ROBOTS_BYTES
    cache.put("http://kept", Robots(b"User-agent: *\nDisallow: /", "clipstill"))
    for number in range(20):
        cache.put(f"http://{number}", Robots(big, "clipstill"))
        assert cache.get("http://kept") is not None
    assert cache.get("http://19") is not None
    assert cache.get("http://0") is None

"""What sites say about being collected: the `X-Robots-Tag` header, and robots.txt (RFC 9309)."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection

from protego import Protego

from ingest.settings import OPT_OUTS

ROBOTS_BYTES = 500 * 1024
"""How much of a robots.txt is read: what RFC 9309 asks for at least."""

_AGENT = re.compile(r"[\w.*/-]*[a-z*][\w.*/-]*")
_USER_AGENT = re.compile(r"\s*user(?:-|\s*)agent(?:\s*:|\s)\s*([^#]*)", re.IGNORECASE)
_CACHE_BYTES = 1024 * 1024
"""Of text; parsed, rules take up to forty times as much."""
_URL_READ = 2000


def agent_name(user_agent: str) -> str:
    """What sites call us: `clipstill` for `clipstill/0.1 (...)`, in lower case."""
    return user_agent.split(maxsplit=1)[0].partition("/")[0].lower()


def opts_out(value: str, agent: str, directives: Collection[str] = OPT_OUTS) -> bool:
    """Whether the value of one `X-Robots-Tag` header keeps what it came with from `agent`, by one of `directives`.

    A list of rules, each for everybody or, after `NAME:`, for the agent of that name alone until the next name.
    Rules may have values with colons (`max-snippet:50`), and dates with commas too.
    """
    wanted = frozenset(directives)
    for_us, in_date = True, False
    for part in re.split("[,;]", value.lower()):
        words = part.strip()
        # As in `unavailable_after: Friday, 25-Jun-10 15:00:00 PST`.
        in_date = in_date and words[:1].isdigit()
        while ":" in words and not in_date:
            name, _, rest = (text.strip() for text in words.partition(":"))
            if name in OPT_OUTS or name in wanted or len(name) > 100 or not _AGENT.fullmatch(name):
                break
            if name.startswith("max-"):
                # The value may be `none`.
                words = " ".join(rest.split()[1:])
            elif name == "unavailable_after":
                words, in_date = rest, True
            else:
                for_us, words = name == "*" or name.partition("/")[0] == agent, rest
        if for_us and not wanted.isdisjoint(re.split(r"[\s:]+", words)):
            return True
    return False


class Robots:
    """One site's robots.txt, as far as it concerns `agent`. `size` is about what it holds, in bytes of text."""

    def __init__(self, text: bytes, agent: str) -> None:
        self.size = min(len(text), ROBOTS_BYTES) + 500
        self._agent = agent
        lines = text[:ROBOTS_BYTES].decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
        # All other agents become one: with thousands of them, each rule would be kept thousands of times.
        self._rules = Protego.parse("\n".join(self._renamed(line) for line in lines)) if lines else None

    def _renamed(self, line: str) -> str:
        found = _USER_AGENT.match(line)
        if not found:
            return line
        name = found[1].strip().lower()
        if name != "*":
            name = self._agent if name.partition("/")[0].rstrip("* ") == self._agent else "?"
        return f"User-agent: {name}"

    def allows(self, url: str) -> bool:
        """Whether `url`, one of this site's, may be fetched."""
        # Thousands of rules with wildcards take too long on longer ones.
        return self._rules is None or self._rules.can_fetch(url[:_URL_READ], self._agent)


class RobotsCache:
    """The robots.txt of the sites met last, by origin; bounded in what it holds."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Robots] = OrderedDict()
        self._size = 0

    def get(self, origin: str) -> Robots | None:
        """What is known of `origin`."""
        if origin in self._kept:
            self._kept.move_to_end(origin)
        return self._kept.get(origin)

    def put(self, origin: str, robots: Robots) -> None:
        """Keep `robots`, in place of those asked for longest ago."""
        self._kept[origin] = robots
        self._size += robots.size
        while self._size > _CACHE_BYTES and len(self._kept) > 1:
            self._size -= self._kept.popitem(last=False)[1].size

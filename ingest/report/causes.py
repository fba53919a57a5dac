"""The ledger's causes in words: what each means, and what can be done about it."""

from __future__ import annotations

import re
from dataclasses import dataclass

LIST, FORBIDDEN, UNREACHED, REFUSED, BODY, UNWANTED = (
    "the list's own faults",
    "must not be fetched",
    "could not be reached",
    "the server said no",
    "not a whole picture as expected",
    "not wanted",
)
GROUPS = (LIST, FORBIDDEN, UNREACHED, REFUSED, BODY, UNWANTED)


@dataclass(frozen=True)
class Cause:
    """Which of `GROUPS` a cause belongs to, what it means and what to do."""

    group: str
    meaning: str
    do: str


_LEFT_OUT = "Nothing: it is left out on purpose."
_ANEW = "needs an ingest of its own."

_WORDS: dict[str, Cause] = {
    "bad_row": Cause(
        LIST,
        "A row of the list that cannot be read: a stray byte, an open quote, too few fields.",
        "Its message has the line. If there are many, the list may need --encoding, --quoted or another --format.",
    ),
    "bad_url": Cause(
        LIST,
        "No http(s) URL: empty, a local path, or without a host.",
        "If there are many, look at --url-column, or --column when packing.",
    ),
    "bad_boxes": Cause(
        LIST,
        "The boxes of faces to blur could not be read, and without them the picture is not stored.",
        "Mend the column that --blur-faces names.",
    ),
    "no_caption": Cause(LIST, "The row has no text.", "Nothing; or, for images alone, --no-captions, which " + _ANEW),
    "no_file": Cause(
        UNREACHED,
        "No file is there, it cannot be read, or the row has no bytes.",
        "Check --root, or put the files there and retry.",
    ),
    "blocked_address": Cause(
        FORBIDDEN,
        "A private, loopback or link-local address.",
        "If it is yours: retry with --allow-address and its network.",
    ),
    "robots_txt": Cause(FORBIDDEN, "The site's robots.txt says no.", _LEFT_OUT),
    "opt_out": Cause(FORBIDDEN, "Its X-Robots-Tag says noai or its like.", _LEFT_OUT),
    "dns": Cause(
        UNREACHED,
        "The name has no address, or no name server answers for it.",
        "Retry. If there are many, run a caching resolver on this machine.",
    ),
    "connect": Cause(UNREACHED, "The host takes no connection.", "Retry; most such hosts are gone for good."),
    "tls": Cause(
        UNREACHED,
        "The certificate is not valid, or the hosts did not agree on TLS.",
        "Retry; with --ca-file if the certificates are of an authority of yours.",
    ),
    "timeout": Cause(
        UNREACHED, "No whole answer in time.", "Retry; with a longer --deadline if the hosts are slow ones."
    ),
    "incomplete": Cause(UNREACHED, "The connection ended before the answer did.", "Retry."),
    "protocol": Cause(
        UNREACHED, "The answer is no HTTP that can be followed, or redirects without end.", "Nothing, usually."
    ),
    "too_large": Cause(BODY, "More bytes than allowed.", "A larger --max-bytes " + _ANEW),
    "hash_mismatch": Cause(
        BODY, "Other bytes than the list promises: the file has changed.", "Without --hash-column they would be taken."
    ),
    "not_an_image": Cause(
        BODY,
        "A web page, or a kind that is not read, as HEIC and SVG.",
        "Nothing, mostly: the picture is gone from there. Files of your own may be converted.",
    ),
    "truncated": Cause(BODY, "The file is cut off or damaged.", "Nothing: it is so on the server."),
    "bomb": Cause(BODY, "More pixels than allowed.", "A larger --max-pixels " + _ANEW),
    "killed_worker": Cause(
        BODY,
        "A picture whose decoding took too much time or memory, or crashed its process.",
        _LEFT_OUT,
    ),
    "filtered_size": Cause(UNWANTED, "A shorter side below --min-size.", _LEFT_OUT),
    "filtered_area": Cause(UNWANTED, "More pixels than --max-area.", _LEFT_OUT),
    "filtered_aspect": Cause(UNWANTED, "Longer than --max-aspect-ratio.", _LEFT_OUT),
    "other": Cause(BODY, "img2dataset's engine dropped it.", "Ingest with the usual engine."),
}

_STATUS: tuple[tuple[str, str, str], ...] = (
    ("http_(404|410)", "The picture is not there any more.", "Nothing: most of what a list loses is lost so."),
    (
        "http_(401|403|451)",
        "The server lets nobody, or not us, have it.",
        "Some open to a --user-agent that says who you are, or to another network.",
    ),
    ("http_429", "Too many requests.", "Retry with fewer at once: --per-host, --per-host-rate."),
    ("http_(408|425|5..)", "The server had trouble.", "Retry."),
    ("http_3..", "A redirect that leads nowhere.", "Nothing."),
    ("http_4..", "The server refuses this request.", "Nothing, usually."),
)


def explain(cause: str) -> Cause:
    """A cause of the ledger in words; one that is not known here is said to be that."""
    if found := _WORDS.get(cause):
        return found
    for pattern, meaning, do in _STATUS:
        if re.fullmatch(pattern, cause):
            return Cause(REFUSED, meaning, do)
    group = REFUSED if cause.startswith("http_") else BODY
    return Cause(group, "Nothing more is known about it.", "Its message says what was seen.")

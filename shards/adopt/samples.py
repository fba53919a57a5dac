"""Which members of a tar are a sample, by webdataset's rule: the same name up to the first dot of its last part."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shards.tar_members import Member

METADATA, LABEL = "json", "cls"
_CAPTION_FIELDS = ("caption", "text")
"""Of the metadata, where there is no member with the caption."""
_LONGEST_KEY = 1000
"""Bytes of a key; a file system's path is the only bound that writers of tars know."""


@dataclass(frozen=True)
class Extensions:
    """What the members with a sample's image and caption end with, without the first dot (`jpg`, `input.jpg`)."""

    images: tuple[str, ...]
    captions: tuple[str, ...]

    def __contains__(self, extension: str) -> bool:
        return extension in self.images or extension in self.captions or extension in {METADATA, LABEL}


@dataclass(frozen=True)
class Refusal:
    """Why a sample cannot be used: one of a few words that can be counted, and a message."""

    cause: str
    message: str


@dataclass
class Sample:
    """Members of one key, by extension as written in lower case; `refusal` says why it is none that can be used."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    refusal: Refusal | None = None

    def one_of(self, extensions: Iterable[str]) -> Member | None:
        """The member with the first of these extensions that is there."""
        return next((self.members[name] for name in extensions if name in self.members), None)


def samples_of(members: Iterable[Member], extensions: Extensions) -> tuple[dict[str, Sample], Counter[str]]:
    """Key → sample in the order of their first members, which need not be neighbours; and what else there is.

    The counter has how many members end with each extension that is not looked for. A key with dots (`a.b.jpg`) is
    read as meant where no sample is called by what stands before its first dot.
    """
    found: dict[str, Sample] = {}
    dotted: list[tuple[Member, str, str]] = []
    others: Counter[str] = Counter()
    for member in members:
        folder, slash, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        extension = extension.lower()
        if not dot or not stem or stem.startswith("__"):
            others[base if stem.startswith("__") else f".{extension}" if dot else base] += 1
        elif extension in extensions:
            _add(found, f"{folder}{slash}{stem}", extension, member)
        else:
            dotted.append((member, f"{folder}{slash}", base))
    for member, folder, base in dotted:
        stem, _, extension = base.rpartition(".")
        first, _, rest = base.partition(".")
        if extension.lower() in extensions and folder + first not in found:
            _add(found, folder + stem, extension.lower(), member)
        else:
            others[f".{rest.lower()}"] += 1
    return found, others


def kind_of(name: str) -> str:
    """What a member's name ends with by webdataset's rule: all that follows the first dot of its last part."""
    return name.rpartition("/")[2].partition(".")[2].lower()


def _add(found: dict[str, Sample], key: str, extension: str, member: Member) -> None:
    sample = found.get(key)
    if sample is None:
        sample = found[key] = Sample(key)
        if len(key) > _LONGEST_KEY or len(key.encode()) > _LONGEST_KEY:
            sample.refusal = Refusal("long_key", f"its key has more than {_LONGEST_KEY} bytes")
    if member.link:
        sample.refusal = sample.refusal or Refusal("link", f"{member.name} is a link, which is not followed")
    elif extension in sample.members:
        sample.refusal = Refusal("member_twice", f"two members are called {member.name}")
    sample.members[extension] = member


class Row(NamedTuple):
    """A sample as the index has it: where its bytes lie; `caption` where no member is the caption as it stands;
    -1 for no label."""

    key: str
    image: Member
    text: Member | None
    json: Member | None
    caption: str | None
    label: int


class _RefusedError(Exception):
    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.refusal = Refusal(cause, message)


def rows_of(
    samples: Iterable[Sample], tar: memoryview, extensions: Extensions, *, captioned: bool
) -> Iterator[Row | tuple[Sample, Refusal]]:
    """Each sample as a row, or with the reason why it is none. `tar` has the bytes that the members lie in."""
    for sample in samples:
        if sample.refusal is not None:
            yield sample, sample.refusal
            continue
        try:
            yield _row(sample, tar, extensions, captioned=captioned)
        except _RefusedError as error:
            yield sample, error.refusal


def _row(sample: Sample, tar: memoryview, extensions: Extensions, *, captioned: bool) -> Row:
    image = sample.one_of(extensions.images)
    if image is None:
        raise _RefusedError("no_image", "it has no image")
    if sum(name in sample.members for name in extensions.images) > 1:
        raise _RefusedError("several_images", "it has several images")
    if image.size == 0:
        raise _RefusedError("empty_image", "its image is empty")
    text, metadata = sample.one_of(extensions.captions), sample.members.get(METADATA)
    data = {} if metadata is None else _json(tar, metadata)
    caption = None
    if text is None:
        caption = next((data[name] for name in _CAPTION_FIELDS if isinstance(data.get(name), str)), None)
        if captioned and caption is None:
            raise _RefusedError("no_caption", "it has no caption")
    try:
        # JSON can spell half of a surrogate pair, which no text has.
        _ = (caption or "").encode() if text is None else _bytes(tar, text).decode()
    except UnicodeError:
        raise _RefusedError("bad_caption", "its caption is not UTF-8") from None
    return Row(sample.key, image, text, metadata, caption, _label(tar, sample.members.get(LABEL)))


def _json(tar: memoryview, member: Member) -> dict[str, Any]:
    try:
        data = json.loads(_bytes(tar, member))
    except (ValueError, RecursionError):
        raise _RefusedError("bad_metadata", "its metadata is no JSON") from None
    if not isinstance(data, dict):
        raise _RefusedError("bad_metadata", "its metadata is no JSON object")
    return data


def _label(tar: memoryview, member: Member | None) -> int:
    if member is None:
        return -1
    digits = _bytes(tar, member).strip()
    if not digits.isdigit() or len(digits) > 9:
        raise _RefusedError("bad_label", f"its label {digits[:40]!r} is no number")
    return int(digits)


def _bytes(tar: memoryview, member: Member) -> bytes:
    return bytes(tar[member.offset : member.offset + member.size])

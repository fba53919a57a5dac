"""What the user chooses when tars are adopted."""

from __future__ import annotations

from typing import Annotated

from shards.settings import option, settings

IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt",)


@settings
class AdoptSettings:
    """Which tars, and which of their members are a sample's.

    `image`, `caption`: what those members end with, after the first dot of their names (`jpg`, `input.jpg`); with
    `captions`, a sample without one is refused. `keys_of_tars`: for tars that count anew.
    """

    patterns: Annotated[
        tuple[str, ...], option("tars: paths or URLs with {000..123} or *, or folders of them", flag="TAR", path=True)
    ]
    out: Annotated[str, option("where the index goes; no image is copied", "FOLDER")]
    name: Annotated[str | None, option("of the dataset (default: the last part of --out)")] = None
    image: Annotated[str | None, option("what images end with (default: jpg, jpeg, png, webp)", "EXT")] = None
    caption: Annotated[
        str | None, option("what captions end with (default: txt, or else the JSON's caption or text)", "EXT")
    ] = None
    captions: Annotated[bool, option("take samples without a caption as well")] = True
    keys_of_tars: Annotated[bool, option("begin keys with the name of their tar")] = False

    @property
    def images_end(self) -> tuple[str, ...]:
        return IMAGES if self.image is None else (self.image.lstrip(".").lower(),)

    @property
    def captions_end(self) -> tuple[str, ...]:
        return CAPTIONS if self.caption is None else (self.caption.lstrip(".").lower(),)

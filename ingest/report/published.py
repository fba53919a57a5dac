"""What yields others have published for the lists that have a format of their own: what is normal.

Only figures that were found, each with its year and source. None was found for Re-LAION.
"""

from __future__ import annotations

from dataclasses import dataclass

ROT = "links rot by about 1 % a month, says img2dataset's author (github.com/rom1504/img2dataset/issues/277)"


@dataclass(frozen=True)
class Published:
    """A yield of `low` to `high` of the rows of a list, seen in `year`. `said`: as its source puts it."""

    of: str
    year: int
    low: float
    high: float
    said: str
    source: str


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "cc3m": (
        Published(
            "CC3M, training",
            2021,
            0.8757,
            0.8757,
            "2,905,954 of 3,318,333",
            "huggingface.co/datasets/pixparse/cc3m-wds",
        ),
        Published(
            "CC3M, validation", 2023, 0.8487, 0.8487, "13,443 of 15,840", "huggingface.co/datasets/pixparse/cc3m-wds"
        ),
        Published(
            "CC3M", 2024, 0.7, 0.7, "70 %, “seems correct” to its author", "github.com/rom1504/img2dataset/issues/391"
        ),
    ),
    "cc12m": (
        Published(
            "CC12M", 2021, 0.8829, 0.8829, "10,968,539 of 12,423,374", "huggingface.co/datasets/pixparse/cc12m-wds"
        ),
        Published("CC12M", 2022, 0.792, 0.792, "79.2 %", "github.com/rom1504/img2dataset/issues/242"),
        Published(
            *("CC12M", 2025, 0.623, 0.623, "7,740,121 of 12,423,374"),
            "github.com/google-research-datasets/conceptual-12m/issues/9",
        ),
    ),
    "laion": (
        Published("LAION-400M", 2023, 0.83, 0.85, "83 to 85 %", "github.com/rom1504/img2dataset/issues/277"),
        Published("LAION-400M", 2024, 0.68, 0.68, "about 68 %", "github.com/rom1504/img2dataset/issues/400"),
        Published("115M of LAION-2B", 2023, 0.6, 0.7, "60 to 70 %", "github.com/salesforce/LAVIS/issues/498"),
        Published(
            *("600M of LAION-2B (LAION-COCO)", 2024, 0.75, 0.75, "“75 % may be normal”"),
            "github.com/rom1504/img2dataset/issues/439",
        ),
    ),
    "datacomp": (
        Published("CommonPool, small", 2023, 0.91, 0.94, "91 to 94 %", "github.com/mlfoundations/datacomp/issues/3"),
        Published("DataComp-1B", 2023, 0.95, 0.97, "95 to 97 % in May", "github.com/Beckschen/ViTamin/issues/3"),
        Published("DataComp-1B", 2023, 0.884, 0.884, "88.4 % in July", "github.com/mlfoundations/datacomp/issues/41"),
        Published(
            *("DataComp-1B", 2024, 0.0, 0.67, "more than a third of the links invalid"),
            "github.com/Beckschen/ViTamin/issues/3",
        ),
    ),
    "yfcc15m": (
        Published("YFCC15M", 2022, 0.9997, 0.9997, "14,825,236 of 14,829,396", "github.com/Sense-GVT/DeCLIP/issues/28"),
        Published(
            *("1.1M photos of YFCC100M (GeoYFCC)", 2021, 0.66, 0.66, "730,000 of 1.1 million"),
            "github.com/abhimanyudubey/GeoYFCC/issues/2",
        ),
    ),
}
"""By `settings.source.format`."""

_MARGIN = 0.1


def far_below(share: float, published: tuple[Published, ...]) -> bool:
    """Whether a yield is so low that the network rather than the list's age is the likely cause."""
    known = [one.low for one in published if one.low > 0]
    return bool(known) and share < min(known) - _MARGIN

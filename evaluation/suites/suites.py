"""Which tables there are: the only list of suites, with the columns of each and what was published beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evaluation.suites import published
from evaluation.suites.rows import Row
from evaluation.suites.tasks import GROUPS, TASKS


@dataclass(frozen=True)
class Column:
    """A metric of a task, or the mean of a group of `GROUPS`."""

    title: str
    task: str
    metric: str = "main_metric"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """`published`: rows to stand beside; `embedding`: whether they count the token embedding among the parameters.

    `against`: what the first column is drawn over: `macs`, or `parameters`.
    """

    about: str
    columns: Sequence[Column]
    published: Callable[[], list[Row]]
    embedding: bool
    against: str = "parameters"

    def tasks(self) -> list[str]:
        """The sets that it takes, by name."""
        found = [one for column in self.columns for one in GROUPS.get(column.task, (column.task,))]
        return list(dict.fromkeys(found))


_IMAGENET = Column("IN-1k", "ImageNet 1k", "acc1")
_TEENSY = ("CIFAR-10", "ImageNette", "Natural Images", "CIFAR-100", "Caltech-256")

SUITES: dict[str, Suite] = {
    "tinyclip": Suite(
        about="TinyCLIP's: ImageNet-1k beside parameters, MACs and pairs a second",
        columns=(_IMAGENET,),
        published=published.tinyclip,
        embedding=False,
        against="macs",
    ),
    "clip-kd": Suite(
        about="CLIP-KD's: ImageNet-1k, -V2, -R and -Sketch, Flickr and COCO",
        columns=(
            _IMAGENET,
            Column("IN-V2", "ImageNet v2", "acc1"),
            Column("IN-R", "ImageNet-R", "acc1"),
            Column("IN-Sketch", "ImageNet Sketch", "acc1"),
            *(
                Column(f"{title} {way} R@1", title, f"{asked}_retrieval_recall@1")
                for title in ("Flickr", "MSCOCO")
                for way, asked in (("I→T", "text"), ("T→I", "image"))
            ),
        ),
        published=published.clip_kd,
        embedding=False,
    ),
    "teensy": Suite(
        about="teensy-tiny-clip's: top-1 and top-5 on five small sets",
        columns=tuple(
            Column(f"{name} {title}", name, metric)
            for name in _TEENSY
            for title, metric in (("top-1", "acc1"), ("top-5", "acc5"))
        ),
        published=published.teensy,
        embedding=False,
    ),
    "mobileclip": Suite(
        about="MobileCLIP's: ImageNet-1k, the mean of 38, Flickr and COCO beside parameters",
        columns=(
            _IMAGENET,
            Column("Mean of 38", "Mean of 38"),
            Column("Flickr R@1", "Flickr"),
            Column("COCO R@1", "MSCOCO"),
        ),
        published=published.mobileclip,
        embedding=True,
    ),
    "datacomp-38": Suite(
        about="DataComp's: the main metric of each of 38 sets, their groups' means and the mean of all",
        columns=(
            *(Column(name, name) for name in reversed(GROUPS)),
            *(Column(name, name) for name in ("ImageNet 1k", *(one for one in TASKS if one != "ImageNet 1k"))),
        ),
        published=published.mobileclip,
        embedding=True,
    ),
}

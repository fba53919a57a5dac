"""DataComp's tasks (arXiv:2304.14108, its `tasklist.yml`): keys, names, test images and the main metric of each.

The mean of 38 is the mean of all main metrics; FairFace and UTKFace are not among them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class TaskFacts:
    """`key` and `name` as results files have them; `size`: samples of the test split; `metric`: what counts."""

    key: str
    name: str
    size: int
    metric: str = "acc1"


_PER_CLASS = "mean_per_class_recall"
_ALL = (
    TaskFacts("vtab/caltech101", "Caltech-101", 6085, _PER_CLASS),
    TaskFacts("cifar10", "CIFAR-10", 10000),
    TaskFacts("vtab/cifar100", "CIFAR-100", 10000),
    TaskFacts("vtab/clevr_count_all", "CLEVR Counts", 15000),
    TaskFacts("vtab/clevr_closest_object_distance", "CLEVR Distance", 15000),
    TaskFacts("country211", "Country211", 21100),
    TaskFacts("vtab/dtd", "Describable Textures", 1880),
    TaskFacts("vtab/eurosat", "EuroSAT", 5400),
    TaskFacts("fgvc_aircraft", "FGVC Aircraft", 3333, _PER_CLASS),
    TaskFacts("food101", "Food-101", 25250),
    TaskFacts("gtsrb", "GTSRB", 12630),
    TaskFacts("imagenet1k", "ImageNet 1k", 50000),
    TaskFacts("imagenet_sketch", "ImageNet Sketch", 50889),
    TaskFacts("imagenetv2", "ImageNet v2", 10000),
    TaskFacts("imagenet-a", "ImageNet-A", 7500),
    TaskFacts("imagenet-o", "ImageNet-O", 2000),
    TaskFacts("imagenet-r", "ImageNet-R", 30000),
    TaskFacts("vtab/kitti_closest_vehicle_distance", "KITTI Vehicle Distance", 711),
    TaskFacts("mnist", "MNIST", 10000),
    TaskFacts("objectnet", "ObjectNet", 18574),
    TaskFacts("vtab/flowers", "Oxford Flowers-102", 6149, _PER_CLASS),
    TaskFacts("vtab/pets", "Oxford-IIIT Pet", 3669, _PER_CLASS),
    TaskFacts("voc2007", "Pascal VOC 2007", 14976),
    TaskFacts("vtab/pcam", "PatchCamelyon", 32768),
    TaskFacts("renderedsst2", "Rendered SST2", 1821),
    TaskFacts("vtab/resisc45", "RESISC45", 6300),
    TaskFacts("cars", "Stanford Cars", 8041),
    TaskFacts("stl10", "STL-10", 8000),
    TaskFacts("sun397", "SUN397", 108754),
    TaskFacts("vtab/svhn", "SVHN", 26032),
    TaskFacts("retrieval/flickr_1k_test_image_text_retrieval", "Flickr", 1000, "mean_recall@1"),
    TaskFacts("retrieval/mscoco_2014_5k_test_image_text_retrieval", "MSCOCO", 5000, "mean_recall@1"),
    TaskFacts("misc/winogavil", "WinoGAViL", 3563, "jaccard_score_10-12"),
    TaskFacts("wilds/iwildcam", "iWildCam", 42791, "F1-macro_all"),
    TaskFacts("wilds/camelyon17", "Camelyon17", 85054),
    TaskFacts("wilds/fmow", "FMoW", 22108, "acc_worst_region"),
    TaskFacts("fairness/dollar_street", "Dollar Street", 3503, "acc_top5_wg"),
    TaskFacts("fairness/geode", "GeoDE", 12488, "acc_wg"),
)
TASKS = {task.name: task for task in _ALL}
"""The 38, by name, in DataComp's order."""

GROUPS = {
    "ImageNet shifts": (
        "ImageNet Sketch",
        "ImageNet v2",
        "ImageNet-A",
        "ImageNet-O",
        "ImageNet-R",
        "ObjectNet",
    ),
    "VTAB": (
        "Caltech-101",
        "CIFAR-100",
        "CLEVR Counts",
        "CLEVR Distance",
        "Describable Textures",
        "EuroSAT",
        "KITTI Vehicle Distance",
        "Oxford Flowers-102",
        "Oxford-IIIT Pet",
        "PatchCamelyon",
        "RESISC45",
        "SVHN",
        "SUN397",
    ),
    "Retrieval": ("Flickr", "MSCOCO", "WinoGAViL"),
    "Mean of 38": tuple(TASKS),
}
"""Means that DataComp reports, of these tasks' main metrics."""

_ALSO = {
    "flickr30k": "Flickr",
    "flickr1k": "Flickr",
    "flickr_1k": "Flickr",
    "mscoco_captions": "MSCOCO",
    "mscoco_5k": "MSCOCO",
    "coco": "MSCOCO",
    "sun397": "SUN397",
    "imagenet": "ImageNet 1k",
    "imagenet_v2": "ImageNet v2",
    "caltech101": "Caltech-101",
    "cifar100": "CIFAR-100",
    "imagenette": "ImageNette",
    "natural_images": "Natural Images",
    "caltech256": "Caltech-256",
}


def task_name(name: str) -> str:
    """The task's name of a set called so (`vtab-pets`, `wds_vtab-pets_test`, `ImageNet-1k`); else the set's own."""
    return _NAMES.get(_plain(name)) or _LOOSE.get(_letters(name), name)


def _plain(name: str) -> str:
    return name.lower().removeprefix("wds_").removesuffix("_test").replace("/", "-").replace(" ", "_")


_NAMES = {
    **{_plain(other): name for other, name in _ALSO.items()},
    **{_plain(task.name): task.name for task in _ALL},
    **{_plain(task.key.rpartition("/")[2]): task.name for task in _ALL},
    **{_plain(task.key): task.name for task in _ALL},
}


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", _plain(name))


_LOOSE = {_letters(plain): name for plain, name in _NAMES.items()}


def folders_of(name: str) -> list[str]:
    """What the folder of a task's set may be called, the most usual first."""
    known = [plain for plain, task in _NAMES.items() if task == name] if name in TASKS else [_plain(name)]
    found = [f"wds_{plain}{ending}" for plain in reversed(known) for ending in ("_test", "")]
    return [*found, *reversed(known), f"{known[-1]}_test", name]

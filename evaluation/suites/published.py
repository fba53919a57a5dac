"""What was printed about models, as rows: from `clip_models.published`, and MobileCLIP's own table and results.

MobileCLIP (Vasu et al., CVPR 2024; arXiv:2508.20691; the README and `results/` of apple/ml-mobileclip): parameters with
the token embedding; latency in ms on an iPhone 12 Pro Max, image + text.
"""

from __future__ import annotations

import re

from clip_models.published import PUBLISHED, Published
from evaluation.suites.metrics import Metrics
from evaluation.suites.rows import Row
from evaluation.suites.tasks import TASKS

_MOBILECLIP = """\
MobileCLIP2-S0    11.4  42.4   1.5+1.6  71.534 59.6730 77.91 53.18
MobileCLIP2-S2    35.7  63.4   3.6+3.3  77.236 64.0507 82.61 57.76
MobileCLIP2-B     86.3  63.4  10.4+3.3  79.414 65.7570 83.10 58.68
MobileCLIP2-S3   125.1 123.6   8.0+6.6  80.684 66.8479 84.43 59.66
MobileCLIP2-L-14 304.3 123.6  57.9+6.6  81.904 67.8044 84.85 60.34
MobileCLIP2-S4   321.6 123.6  19.6+6.6  81.854 67.5467 85.21 60.40
MobileCLIP-S0     11.4  42.4   1.5+1.6  67.786 58.1170 76.79 49.59
MobileCLIP-S1     21.5  63.4   2.5+3.3  72.616 61.2541 80.08 53.11
MobileCLIP-S2     35.7  63.4   3.6+3.3  74.438 63.6568 81.84 54.37
MobileCLIP-B      86.3  63.4  10.4+3.3  76.824 65.1535 84.34 59.71
MobileCLIP-B-LT   86.3  63.4  10.4+3.3  77.224 65.7789 84.59 59.36
MobileCLIP-S3    125.1 123.6   8.0+6.6  78.290 66.3346 85.52 60.06
MobileCLIP-L-14  304.3 123.6  57.9+6.6  79.528 66.9350 83.25 57.03
MobileCLIP-S4    321.6 123.6  19.6+6.6  79.406 68.1103 87.20 61.21
"""
"""Name, parameters of image and text tower in millions, latency, and in percent ImageNet-1k, the mean of 38, and the
mean of both R@1 on Flickr and COCO."""


def mobileclip() -> list[Row]:
    rows = []
    for line in _MOBILECLIP.splitlines():
        name, image, text, latency, *scores = line.split()
        in1k, mean, flickr, coco = (float(score) / 100 for score in scores)
        rows.append(
            Row(
                name=name,
                source="MobileCLIP",
                data="DFNDR-2B" if name.startswith("MobileCLIP2") else "DataCompDR-1B",
                tasks={
                    "ImageNet 1k": {"acc1": in1k, "main_metric": in1k},
                    "Flickr": {"mean_recall@1": flickr, "main_metric": flickr},
                    "MSCOCO": {"mean_recall@1": coco, "main_metric": coco},
                },
                means={"Mean of 38": mean},
                image=float(image),
                text=float(text),
                latency=sum(float(part) for part in latency.split("+")),
            )
        )
    return rows


def tinyclip() -> list[Row]:
    return [_row(row) for row in PUBLISHED if "TinyCLIP" in row.source]


def clip_kd() -> list[Row]:
    return [_row(row) for row in PUBLISHED if "CLIP-KD" in row.source]


def teensy() -> list[Row]:
    return [_row(row) for row in PUBLISHED if row.source == "teensy-tiny-clip"]


def _row(row: Published) -> Row:
    tasks: dict[str, Metrics] = {}
    if row.in1k:
        tasks["ImageNet 1k"] = {"acc1": float(row.in1k) / 100, "main_metric": float(row.in1k) / 100}
    for name, top1, top5 in re.findall(r"([\w -]+?) ([\d.]+)/([\d.]+)", row.also):
        metrics: Metrics = {"acc1": float(top1) / 100, "acc5": float(top5) / 100}
        tasks[name.strip()] = metrics | ({"main_metric": metrics["acc1"]} if name.strip() in TASKS else {})
    return Row(
        name=row.name,
        source=f"{row.source} (teacher)" if row.role == "teacher" else row.source,
        data=row.data,
        tasks=tasks,
        image=_figure(row.image),
        text=_figure(row.text),
        macs=_figure(row.macs),
        pairs=_figure(row.rate),
    )


def _figure(text: str) -> float | None:
    return float(text.replace(",", "")) if text else None

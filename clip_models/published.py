"""What was published about the students and teachers that can be had by name, as it was printed.

TinyCLIP (Wu et al., ICCV 2023, and the table of github.com/wkcn/TinyCLIP), CLIP-KD (Yang et al., CVPR 2024) and
teensy-tiny-clip (github.com/jlana5/teensy-tiny-clip).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a published table; numbers as printed, "" where nobody printed one.

    `image`, `text`: parameters in millions, the text tower's without its token embedding. `macs`: in 10⁹, an image and
    a text of 77 tokens. `in1k`: zero-shot top-1 on ImageNet-1k in percent, after training on `data`. `also`: what else
    was printed, zero-shot top-1 or top-1/top-5 in percent. `rate`: image-text pairs a second. `role`: a student, a
    student whose architecture pruning finds, or a teacher.
    """

    name: str
    source: str
    image: str = ""
    text: str = ""
    macs: str = ""
    in1k: str = ""
    data: str = ""
    also: str = ""
    rate: str = ""
    role: str = "student"


def _tinyclip(name: str, numbers: str, data: str, also: str = "", role: str = "student") -> Published:
    image, text, macs, in1k, rate = (number.strip("-") for number in numbers.split())
    return Published(
        name=f"TinyCLIP-{name}",
        source="TinyCLIP",
        image=image,
        text=text,
        macs=macs,
        in1k=in1k,
        rate=rate,
        data=data,
        also=also,
        role=role,
    )


def _clip_kd(name: str, image: str, in1k: str, text: str = "21.52", also: str = "") -> Published:
    return Published(name=name, source="CLIP-KD", image=image, text=text, in1k=in1k, data="CC3M+12M", also=also)


def _mixer(name: str, image: str, images: str, figures: str) -> Published:
    names = ("CIFAR-10", "ImageNette", "Natural Images", "CIFAR-100", "Caltech-256")
    also = ", ".join(f"{name} {figure}" for name, figure in zip(names, figures.split(), strict=True))
    return Published(name=name, source="teensy-tiny-clip", image=image, data=f"COCO, {images} images", also=also)


_AND_YFCC = "after LAION-400M and YFCC-15M"

PUBLISHED = (
    _tinyclip("ViT-8M-16-Text-3M", "8.28 2.52 2.0 41.1 4,150", "YFCC-15M"),
    _tinyclip("ViT-39M-16-Text-19M", "38.59 19.22 9.5 63.5 1,469", "YFCC-15M"),
    _tinyclip("ViT-40M-32-Text-19M", "39.69 19.22 3.5 59.8 4,641", "LAION-400M"),
    _tinyclip("ViT-61M-32-Text-29M", "61.41 28.67 5.3 62.4 3,191", "LAION-400M"),
    _tinyclip("ResNet-19M-Text-19M", "18.60 19.48 4.4 56.4 3,024", "LAION-400M"),
    _tinyclip("ResNet-30M-Text-29M", "29.58 28.94 6.9 59.1 1,811", "LAION-400M"),
    _tinyclip("auto-ViT-22M-32-Text-10M", "- - 1.9 53.7 5,504", "LAION-400M", role="pruned"),
    _tinyclip("auto-ViT-45M-32-Text-18M", "- - 3.7 61.4 3,682", "LAION-400M", f"IN-1k 62.7 {_AND_YFCC}", "pruned"),
    _tinyclip("auto-ViT-63M-32-Text-31M", "- - 5.6 63.9 2,905", "LAION-400M", f"IN-1k 64.5 {_AND_YFCC}", "pruned"),
    _clip_kd(
        "ViT-T-16", "5.62", "34.90", also="IN-1k 42.6 and 40.9 with LAION-400M's ViT-B-16 and ViT-L-14 as teacher"
    ),
    _clip_kd("mobilevit_s", "5.27", "35.96"),
    _clip_kd("swin_tiny_patch4_window7_224", "27.91", "40.18"),
    _clip_kd("mobilenetv3_small_100", "2.04", "26.95"),
    _clip_kd("efficientnet_b0", "4.66", "35.44"),
    _clip_kd("resnet18", "11.44", "31.36"),
    _clip_kd("RN50", "38.32", "55.4", "", "IN-1k 55.4 is with LAION-400M's ViT-B-16 as teacher"),
    _mixer("clip-mixer-4M", "4", "51k", "20.02/73.11 16.88/59.35 22.58/81.19 1.85/7.86 0.47/3.39"),
    _mixer("clip-mixer-5M", "5", "57k", "19.83/71.96 16.78/59.68 24.48/79.66 2.00/7.83 0.47/3.37"),
    Published(name="ViT-B-32", source="TinyCLIP", role="teacher"),
    Published(
        name="ViT-B-16",
        source="TinyCLIP, CLIP-KD",
        in1k="67.1",
        data="LAION-400M",
        also="IN-1k 36.99 after CC3M+12M; 57.5 with LAION-400M's ViT-L-14 as teacher",
        role="teacher",
    ),
    Published(name="ViT-L-14", source="CLIP-KD", in1k="72.8", data="LAION-400M", role="teacher"),
    Published(name="RN101", source="CLIP-KD", image="56.26", in1k="36.76", data="CC3M+12M", role="teacher"),
)
"""Students first, each source's by size."""

"""Shards as other people's loaders read them; what is found is plain, so that it crosses processes.

    python tests/integration/others.py FUNCTION '{"tars": [...], ...}'

calls one of these functions under whichever version of webdataset is found first, and prints its result as JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
from types import SimpleNamespace
from typing import Any


def webdataset_samples(tars: list[str]) -> dict[str, dict[str, str]]:
    """Key → member's ending → SHA-256 of its bytes, as `webdataset.WebDataset` groups them."""
    import webdataset  # noqa: PLC0415

    found: dict[str, dict[str, str]] = {}
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        assert sample["__key__"] not in found, sample["__key__"]
        # What begins with two lines is webdataset's own.
        parts = {name: value for name, value in sample.items() if not name.startswith("__")}
        found[sample["__key__"]] = {name: hashlib.sha256(value).hexdigest() for name, value in parts.items()}
    return found


def open_clip_pairs(tars: list[str], samples: int, *, train: bool) -> list[tuple[str, str]]:
    """SHA-256 of each image's and caption's tensor as open_clip's `get_wds_dataset` hands them to a step, sorted."""
    import open_clip  # noqa: PLC0415
    from open_clip_train.data import get_wds_dataset  # type: ignore[import-untyped]  # noqa: PLC0415

    wanted = SimpleNamespace(
        **{"train_data": "::".join(tars), "val_data": "::".join(tars), "workers": 0, "world_size": 1, "seed": 0},
        **{"train_num_samples": samples, "val_num_samples": samples, "batch_size": 4, "dataset_resampled": False},
        train_data_upsampling_factors=None,
    )
    transform = open_clip.image_transform(32, is_train=False)
    data = get_wds_dataset(wanted, transform, is_train=train, tokenizer=open_clip.get_tokenizer("ViT-B-32"))
    found = []
    for images, texts in data.dataloader:
        found += [(_digest(image), _digest(text)) for image, text in zip(images, texts, strict=True)]
    return sorted(found)


def tensors(image: bytes, caption: str) -> tuple[str, str]:
    """What `open_clip_pairs` must have for a sample."""
    import io  # noqa: PLC0415

    import open_clip  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    pixels = open_clip.image_transform(32, is_train=False)(Image.open(io.BytesIO(image)).convert("RGB"))
    return _digest(pixels), _digest(open_clip.get_tokenizer("ViT-B-32")(caption)[0])


def _digest(tensor: Any) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def version() -> str:
    """Of the webdataset that is used."""
    import webdataset  # noqa: PLC0415

    return str(webdataset.__version__)


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))  # noqa: T201

"""open_clip's own training pipeline: `get_wds_dataset` and `image_transform`, a worker process a core.

python run_open_clip.py JSON
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from open_clip.transform import image_transform
from open_clip_train.data import get_wds_dataset  # type: ignore[import-untyped]

from benchmarks.loader.clock import answer, speed, wanted


def main() -> None:
    wish = wanted()
    torch.set_num_threads(1)
    tars = [Path(tar) for tar in wish["tars"]]
    settings = SimpleNamespace(
        train_data=f"{tars[0].parent}/{{{tars[0].stem}..{tars[-1].stem}}}.tar",
        train_num_samples=wish["samples"],
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=wish["batch"],
        world_size=1,
        # On one core the pipeline runs in the process itself, which spares it the copy from a worker.
        workers=wish["cores"] if wish["cores"] > 1 else 0,
    )
    transform = image_transform(wish["size"], is_train=True, aug_cfg={"scale": tuple(wish["scale"])})
    data = get_wds_dataset(settings, transform, is_train=True, tokenizer=open_clip.get_tokenizer("ViT-B-32"))
    answer(speed(_sizes(data), wish["seconds"]))
    # The workers are still at it.
    os._exit(0)


def _sizes(data: Any) -> Iterator[int]:
    epoch = 0
    while True:
        data.set_epoch(epoch)
        for images, _ in data.dataloader:
            yield len(images)
        epoch += 1


if __name__ == "__main__":
    main()

"""torchvision's fast path: `decode_jpeg` and v2's RandomResizedCrop on uint8 tensors, read through our mapped index, a
worker process a core; captions tokenised as open_clip does.

python run_torchvision.py JSON
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-untyped]
from torchvision.transforms import v2  # type: ignore[import-untyped]

from benchmarks.loader.clock import answer, speed, wanted
from shards import Dataset as Shards


class _Samples(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, shards: str, size: int, scale: tuple[float, float]) -> None:
        self._shards = Shards.open(shards).shards
        self._ends = np.cumsum([shard.count for shard in self._shards])
        self._crop = v2.RandomResizedCrop(size, scale=scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
        self._tokenizer = open_clip.get_tokenizer("ViT-B-32")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        place = int(np.searchsorted(self._ends, number, side="right"))
        shard = self._shards[place]
        row = number - (int(self._ends[place - 1]) if place else 0)
        data = torch.frombuffer(bytearray(shard.image_bytes(row)), dtype=torch.uint8)
        return self._crop(decode_jpeg(data, ImageReadMode.RGB)), self._tokenizer([shard.caption(row)])[0]


def main() -> None:
    wish = wanted()
    torch.set_num_threads(1)
    loader = DataLoader(
        _Samples(wish["shards"], wish["size"], tuple(wish["scale"])),
        batch_size=wish["batch"],
        shuffle=True,
        drop_last=True,
        num_workers=wish["cores"] if wish["cores"] > 1 else 0,
    )
    answer(speed(_sizes(loader), wish["seconds"]))
    # The workers are still at it.
    os._exit(0)


def _sizes(loader: DataLoader[tuple[Tensor, Tensor]]) -> Iterator[int]:
    while True:
        for images, _ in loader:
            yield len(images)


if __name__ == "__main__":
    main()

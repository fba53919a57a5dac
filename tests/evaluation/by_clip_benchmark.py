"""The figures of CLIP_benchmark (github.com/LAION-AI/CLIP_benchmark) for a model's folder on `wds_*` folders.

    python by_clip_benchmark.py MODEL '{"NAME": "path/to/wds_folder", ...}'

prints them as JSON. Run under whichever clip_benchmark and numpy are found first: it fails with numpy 2.4.
"""

from __future__ import annotations

import json
import sys
from typing import Any


class Batches:
    """A loader that knows its set, as theirs does."""

    def __init__(self, loader: Any, dataset: Any) -> None:
        self.loader, self.dataset = loader, dataset

    def __iter__(self) -> Any:
        return iter(self.loader)


def figures(model: Any, transform: Any, tokenizer: Any, root: str) -> dict[str, float]:
    """As `clip_benchmark eval` computes them, in float32."""
    import torch  # noqa: PLC0415
    from clip_benchmark.datasets.builder import (  # type: ignore[import-not-found]  # noqa: PLC0415
        build_wds_dataset,
        image_captions_collate_fn,
    )
    from clip_benchmark.metrics import (  # type: ignore[import-not-found]  # noqa: PLC0415
        zeroshot_classification,
        zeroshot_retrieval,
    )

    data = build_wds_dataset("x", transform, split="test", data_dir=root)
    retrieves = data.classes is None
    loader: Any = torch.utils.data.DataLoader(
        data.batched(4, collation_fn=image_captions_collate_fn if retrieves else torch.utils.data.default_collate),
        batch_size=None,
    )
    if retrieves:
        found = zeroshot_retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
        return dict(found)
    told = zeroshot_classification.evaluate(
        model, Batches(loader, data), tokenizer, data.classes, data.templates, "cpu", amp=False
    )
    return {name: float(value) for name, value in told.items()}


if __name__ == "__main__":
    import open_clip

    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{sys.argv[1]}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{sys.argv[1]}")
    roots = json.loads(sys.argv[2])
    print(json.dumps({name: figures(loaded.eval(), preprocess, tokenize, root) for name, root in roots.items()}))  # noqa: T201

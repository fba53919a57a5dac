"""Tars that somebody else wrote become a dataset, in place.

Read `adopting.py` first; `tars.py` finds them, `samples.py` says what a sample is.
"""

from typing import TYPE_CHECKING

from shards.lazy import lazily

if TYPE_CHECKING:
    from shards.adopt.adopting import Adopted, adopt, work_of_tars
    from shards.adopt.settings import AdoptSettings
    from shards.adopt.tars import find_tars
else:
    __getattr__ = lazily(__name__, "settings", "tars", "adopting")

__all__ = ["AdoptSettings", "Adopted", "adopt", "find_tars", "work_of_tars"]

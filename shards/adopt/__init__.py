"""Tars that somebody else wrote become a dataset, in place.

Read `adopt.py` first; `tars.py` finds them, `tar_members.py` reads their headers, `samples.py` says what a sample is.
"""

from shards.adopt.adopt import Adopted, AdoptSettings, adopt
from shards.adopt.samples import Extensions

__all__ = ["AdoptSettings", "Adopted", "Extensions", "adopt"]

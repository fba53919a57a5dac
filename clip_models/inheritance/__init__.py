"""A student that begins as a part of its teacher: TinyCLIP's manual weight inheritance (Wu et al., ICCV 2023).

Comes in: a student, its config and a loaded teacher. Goes out: the student, filled in place, and a row for each tensor
that says what it holds of the teacher's. Read `inherit.py` first; `towers.py` is what two towers are compared by.
"""

from clip_models.inheritance.inherit import inherit
from clip_models.inheritance.report import Inherited, read_inheritance, summary, write_inheritance

__all__ = ["Inherited", "inherit", "read_inheritance", "summary", "write_inheritance"]

"""The command line of Clipstill, and `load`, for who only uses a student.

    import clipstill
    student = clipstill.load("runs/vit-s")
    student.classify("picture.jpg", ["cat", "dog"])    # {"cat": 0.97, "dog": 0.03}
    student.embed_images(["a.jpg", "b.jpg"])           # (2, D) float32 of unit norm
    student.embed_texts("a photo of a cat")            # (D,)

The command line parses, calls the stages, reports, sets the exit status; no logic lives here. Read `main.py` first;
each file in `commands/` is one command. `demo/` is the whole path on data it makes itself.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.use import Student, load
    from shards.errors import UserError

__all__ = ["Student", "UserError", "load"]


def __getattr__(name: str) -> object:
    if name == "UserError":
        from shards.errors import UserError  # noqa: PLC0415 - a command's help needs none

        return UserError
    if name in __all__:
        from distill import use  # noqa: PLC0415

        return getattr(use, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Model folders as Hugging Face's libraries save them: find one, and load from it without a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards import UserError

_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
"""What is fetched of a repository: no pickled weights, no code."""


def model_folder(name: str, spec: str) -> Path:
    """A folder as it is, else the snapshot of the hub's repository `name`, fetched or from the hub's own cache.

    Raises `UserError` if there is neither.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if name.startswith((".", "/")) or name.count("/") > 1:
        raise UserError("there is no such folder", where=spec)
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow, and a folder needs no hub

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # the hub's, httpx's and the disk's errors are families of their own
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"it is no folder, and the hub does not give it: {reason}",
            where=spec,
            do="Check the name and the network, or fetch the folder elsewhere and give its path",
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, one a file."""
    from transformers.utils import logging  # noqa: PLC0415 - slow

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

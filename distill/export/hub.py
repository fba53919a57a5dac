"""An export to the Hugging Face hub, with its card. The token is read from the environment alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shards.errors import UserError, one_line

TOKEN = "HF_TOKEN"


def refuse_unpublishable(name: str) -> None:
    """Raise `UserError` unless `name` (USER/NAME) can be pushed to: its form, the token, and what the hub says of both.

    Nothing is made there yet.
    """
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415 - half a second
    from huggingface_hub.utils._validators import validate_repo_id  # noqa: PLC0415

    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError("it names no user or organisation")
    except HFValidationError as error:
        raise UserError(
            f"this is no repository's name ({one_line(str(error))})", where=name, do="Give USER/NAME"
        ) from None
    if not os.environ.get(TOKEN):
        do = f"Set {TOKEN} to one that may write, from https://huggingface.co/settings/tokens"
        raise UserError(f"there is no token in ${TOKEN}", where=name, do=do)
    with _told(name):
        _api().whoami()


def push(folder: str, name: str) -> str:
    """Make the repository `name` if it is not there, and add the folder's files in one commit; returns the address.

    Raises `UserError` in one line, without the token, if the hub refuses or cannot be reached.
    """
    with _told(name):
        api = _api()
        api.create_repo(name, exist_ok=True)
        done = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by Clipstill")
    return str(done.commit_url).partition("/commit/")[0]


def _api() -> Any:
    from huggingface_hub import HfApi  # noqa: PLC0415

    return HfApi(token=os.environ[TOKEN])


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of the hub, of the network and of the library, each with its own family
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled  # noqa: PLC0415

        said = one_line(str(error)).replace(os.environ.get(TOKEN) or "\0", "...")
        response = getattr(error, "response", None)
        if isinstance(error, HfHubHTTPError) and response is not None:
            said = f"{response.status_code}: {getattr(error, 'server_message', None) or said}"
        elif not isinstance(error, OSError | OfflineModeIsEnabled) and "httpx" not in type(error).__module__:
            raise
        do = f"Check the name, ${TOKEN} and the network; what was exported stays"
        raise UserError(f"the hub does not take it ({one_line(said)})", where=name, do=do) from None

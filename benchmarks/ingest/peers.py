"""The peers: each is installed as its users install it, beside none of our packages."""

from __future__ import annotations

from importlib.metadata import version

PEERS = {
    # With the versions that we have of what both use to decode, so that those do not make the difference.
    "img2dataset": (
        "img2dataset==1.47.0",
        *(f"{name}=={version(name)}" for name in ("opencv-python-headless", "pillow", "pyarrow", "webdataset")),
        "standard-imghdr; python_version >= '3.13'",
    ),
    "daft": ("daft==0.7.26",),
}

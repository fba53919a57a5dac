"""A store that speaks the S3 protocol, and Ray for the length of a module."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from shards.ray_executor import ray_session


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 server on this machine; the environment names it and holds credentials for it."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    endpoint = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        yield endpoint
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


_numbers = itertools.count()


@pytest.fixture
def bucket(s3_endpoint: str) -> str:
    """The URL of a new, empty bucket."""
    assert s3_endpoint
    name = f"bucket-{next(_numbers)}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """Ray with two cores, started once for a module."""
    with ray_session(cpus=2):
        yield

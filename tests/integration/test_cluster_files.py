"""The files of docs/cluster are what their readers take: Ray's launcher, and the versions of the lock."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = ROOT / "docs" / "cluster"


def read(name: str) -> Any:
    return yaml.safe_load((FILES / name).read_text())


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_rays_launcher_takes_them(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415

    config = prepare_config(copy.deepcopy(read(name)))
    validate_config(config)
    kinds = config["available_node_types"]
    assert kinds[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert kinds["gpu"]["resources"]["GPU"] == 1
    assert all(kinds[kind]["min_workers"] == 0 for kind in ("cpu", "gpu"))


def test_ray_has_the_version_of_the_lock_everywhere() -> None:
    (wanted,) = re.findall(r"(?m)^ray==(\S+)$", (ROOT / "requirements.lock").read_text())
    image = re.findall(r"(?m)^FROM rayproject/ray:([\d.]+)-", (FILES / "Dockerfile").read_text())
    guide = re.findall(r"ray\[default\]==([\d.]+)", (ROOT / "docs" / "cluster.md").read_text())
    manifests = [
        read("raycluster.yaml")["spec"]["rayVersion"],
        read("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"],
    ]
    assert {*image, *guide, *manifests} == {wanted}


def test_the_jobs_command_parses(parse_line: Callable[[str], None]) -> None:
    parse_line(read("rayjob.yaml")["spec"]["entrypoint"])

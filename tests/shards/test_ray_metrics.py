"""What workers count is served by Ray's own endpoint of their machine."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from shards.ray_executor import RayExecutor
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache

pytest.importorskip("prometheus_client", reason="Ray serves metrics where ray[default] is installed")

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")


def scraped(address: str) -> dict[str, float]:
    """The counters of all workers there, added up, by name."""
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    sums: dict[str, float] = {}
    for line in lines:
        if found := re.fullmatch(r'ray_clipstill_(\w+)_total\{.*stage="cache build".*\} (\S+)', line):
            sums[found[1]] = sums.get(found[1], 0.0) + float(found[2])
    return sums


@pytest.mark.long
def test_a_build_is_counted(
    make_dataset: Any, save_teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray  # noqa: PLC0415
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    make_dataset(tmp_path / "data", (5, 4, 3))
    teacher = TeacherSpec(save_teacher(tmp_path / "teacher"), "teach")
    settings = BuildSettings(
        shards=str(tmp_path / "data"), cache=str(tmp_path / "cache"), teachers=(teacher,), views=2, batch_size=4
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        began = time.monotonic()
        report = build_cache(settings, RayExecutor(1, address=cluster.address))
        seconds = time.monotonic() - began
        ray.init(cluster.address, log_to_driver=False)
        (node,) = ray.nodes()
        ray.shutdown()
        # Of the views and the captions each: 12 samples in 3 shards.
        wanted = {"shards": 6, "rows": 24, "samples": 24, "bytes": report.bytes}
        endpoint = f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        deadline = time.monotonic() + 120
        while {name: (counted := scraped(endpoint)).get(name) for name in wanted} != wanted:
            assert time.monotonic() < deadline, counted
            time.sleep(0.2)
    finally:
        cluster.shutdown()
    assert 0 < counted["busy_seconds"] < seconds
    assert "failed" not in counted

"""The same build on a GPU: ViT-L/14 in bfloat16, its share of the chip's arithmetic, and how busy the chip is."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cache.build import BuildBenchmark, Trial
from benchmarks.record import Goal, spread

NEMO_CURATOR = 112.0
"""Images a second and GPU: the floor that NVIDIA holds its image pipeline to (900 on 8: decode, CLIP, write)."""
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
"""Dense bfloat16 operations a second, from the makers' data sheets (SXM where there are several)."""


def measure(folder: Path, photos: Path, *, quick: bool) -> tuple[dict[str, Any], list[Goal]]:
    """Figures and goals; call only where torch has CUDA."""
    forwards = 2048 if quick else 32768
    trial = Trial(
        model="ViT-L-14", precision="bf16", batch_size=256, forwards=forwards, views=(1, 4), rounds=3, compile=True
    )
    bench = BuildBenchmark(folder, photos, trial)
    figures = bench.measure()
    busy = [_busy_while(bench, views) for views in trial.views]
    name = torch.cuda.get_device_name()
    operations = _operations(bench)
    rates = figures["forwards_per_second"]
    figures |= {
        "gpu": name,
        "gflop_an_image": operations / 1e9,
        "busy": spread(busy),
        "times_nemo_curator": rates["views_1"]["median"] / NEMO_CURATOR,
    }
    goals = [
        Goal(name=f"GPU: {way}, share of the bare forward", value=ratio["median"], at_least=0.95)
        for way, ratio in figures["ratio_to_bare"].items()
    ]
    goals.append(Goal(name="GPU: busy share of a build", value=min(busy), at_least=0.95))
    peak = next((value for chip, value in _PEAKS.items() if chip in name), None)
    if peak is not None:
        share = operations * rates["views_1"]["median"] / peak
        figures["model_flops_share"] = share
        goals.append(Goal(name="GPU: model FLOPs, share of the chip's peak", value=share, at_least=0.5))
    return figures, goals


def _operations(bench: BuildBenchmark) -> float:
    """Floating-point operations of one image's forward."""
    # The counter does not see into the fused layers of inference.
    torch.backends.mha.set_fastpath_enabled(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        bench.model.encode_image(bench.batch[:1])
    torch.backends.mha.set_fastpath_enabled(True)
    return float(counter.get_total_flops())


def _busy_while(bench: BuildBenchmark, views: int) -> float:
    """The mean share of time in which a kernel ran, as nvidia-smi says, while a shard is built."""
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=100", "--id=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        start = time.perf_counter()
        _, start_up = bench.build(views)
        seconds = time.perf_counter() - start
        watcher.terminate()
        assert watcher.stdout is not None
        seen = [float(line) / 100 for line in watcher.stdout.read().splitlines() if line.strip().isdigit()]
    # Loading the model and compiling it are not part of it.
    steady = seen[int(len(seen) * start_up / seconds) :]
    return sum(steady) / max(1, len(steady))

"""Starting the processes of a run."""

from __future__ import annotations

from typing import Literal

from distill.settings import RunSettings
from distill.training.train import Result, train
from shards import UserError

Launcher = Literal["here", "ray"]


def launch(
    settings: RunSettings, launcher: Launcher = "here", processes: int | None = None, address: str | None = None
) -> Result:
    """Train in this process, or in those of a Ray cluster.

    `here`: one process, or this one of those that `torchrun` started. `ray`: `processes` workers of Ray Train (default:
    one a GPU of the cluster, one without), a GPU each where there are any, on this machine or the cluster at `address`;
    `settings.out` must be a folder that all nodes share. Raises `UserError` as `train` does.
    """
    if launcher == "here":
        if processes is not None or address is not None:
            asked = f"{processes} processes" if address is None else f"processes of the cluster at {address}"
            raise UserError(
                f"{asked} were asked for, but this run is to stay here",
                where="--processes" if address is None else "--ray-address",
                do="Start it with torchrun, or use --launcher ray",
            )
        return train(settings)
    # Ray is slow to load, and not needed otherwise.
    from distill.training.ray_launcher import train_on_ray  # noqa: PLC0415

    return train_on_ray(settings, processes, address)

"""Starting the processes of a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from clip_models.spec import refuse_absent, refuse_no_student
from distill.settings import RunSettings
from shards.errors import UserError

if TYPE_CHECKING:
    from distill.run_folder import Result

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
        look_at_paths(settings)
        from distill.training.train import train  # noqa: PLC0415 - brings torch

        return train(settings)
    # Ray is slow to load, and not needed otherwise.
    from distill.training.ray_launcher import train_on_ray  # noqa: PLC0415

    return train_on_ray(settings, processes, address)


def look_at_paths(settings: RunSettings) -> None:
    """Raise `UserError` for paths, names and counts that are wrong, before anything slow is imported.

    Training looks closer: samples may be missing from a cache.
    """
    from distill.run_folder import BEGINNINGS  # noqa: PLC0415
    from evaluation.sets import open_by_name, refuse_unknown_figure  # noqa: PLC0415
    from shards import Dataset, Folder  # noqa: PLC0415
    from shards.places import refuse_other_things  # noqa: PLC0415
    from teacher_cache.layout import no_cache, teacher_names  # noqa: PLC0415

    samples = [len(Dataset.open(shards)) for shards in settings.shards]
    for cache in settings.cache:
        if not teacher_names(Folder(cache)):
            raise no_cache(Folder(cache))
    if settings.evaluation is not None:
        refuse_unknown_figure(settings.evaluation.best, open_by_name(settings.evaluation.on, settings.evaluation))
    if settings.initial is not None:
        refuse_absent(settings.initial)
    refuse_no_student(settings.student)
    refuse_other_things(Folder(settings.out), "a run", BEGINNINGS)
    shares = zip(settings.weights_in_order(), samples, strict=True)
    settings.check_batch(sum(round(weight * count) for weight, count in shares), int(os.environ.get("WORLD_SIZE", "1")))

"""What the user chooses about how teachers run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from clip_models.precision import Precision
from shards.errors import UserError
from shards.settings import option, settings

if TYPE_CHECKING:
    import torch

Towers = Literal["both", "image", "text"]


@settings
class Forward:
    """How forwards run.

    `device` is torch's name of one; auto is cuda if there is one, else cpu. `precision` is autocast's: weights stay
    float32, and a teacher that is loaded in fp32 onto cuda switches cuDNN's TF32 off, for the process. `compile` runs
    the towers through torch.compile, which pays where batches have one shape: the caller pads.
    """

    device: Annotated[str, option("auto, cpu, cuda", "NAME")] = "auto"
    precision: Annotated[Precision, option("of the forward")] = "fp32"
    compile: Annotated[bool, option("torch.compile the teachers: minutes first, then faster")] = False

    def torch_device(self) -> torch.device:
        """Raises `UserError` if torch knows no such device or the machine has none."""
        import torch  # noqa: PLC0415 - slow, and settings are made before it is needed

        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"this device cannot be used: {reason}", where=name, do="Give auto, cpu or cuda") from error
        return device

"""What a spec names, as far as the file system tells: paths are looked at before anything slow is imported."""

from __future__ import annotations

from pathlib import Path

from shards.errors import UserError

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
SPEC_FORMS = "Give ARCH:TAG, ARCH:/path/to/weights, hf-hub:ORG/NAME, or a folder that holds " + CONFIG_NAME


def refuse_absent(spec: str) -> None:
    """Raise `UserError` if a spec as `load_model` takes it is a path where no model is."""
    if spec.startswith("hf-hub:"):
        return
    if spec.startswith("local-dir:") or Path(spec).is_dir():
        folder = Path(spec.removeprefix("local-dir:"))
        if not folder.is_dir():
            raise UserError("there is no such folder", where=spec, do=SPEC_FORMS)
        if not (folder / CONFIG_NAME).exists():
            if (folder / "model" / CONFIG_NAME).exists():
                raise UserError("this is a run's folder, not a model's", where=spec, do=f"Give {folder / 'model'}")
            do = f"A model folder holds {CONFIG_NAME} and {WEIGHTS_NAME}"
            raise UserError("there is no such file", where=str(folder / CONFIG_NAME), do=do)
        return
    _, colon, source = spec.partition(":")
    if not colon and ("/" in spec or spec.startswith(".")):
        raise UserError("there is no such folder", where=spec, do=SPEC_FORMS)
    if source.endswith(WEIGHT_SUFFIXES) and not Path(source).is_file():
        raise UserError("there is no such weights file", where=source, do=SPEC_FORMS)

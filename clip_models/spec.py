"""What a spec names, as far as files tell: paths and names are looked at before anything slow is imported."""

from __future__ import annotations

import difflib
import sys
from importlib.util import find_spec
from pathlib import Path

from clip_models.published import PUBLISHED
from shards.errors import UserError

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
SPEC_FORMS = "Give ARCH:TAG, ARCH:/path/to/weights, hf-hub:ORG/NAME, or a folder that holds " + CONFIG_NAME
STUDENTS = Path(__file__).parent / "students"
"""Where the configurations of the students are that this package adds to open_clip's."""
TIMM = "timm/"
"""What the name of a student around one of timm's image models begins with."""


def architectures() -> set[str]:
    """The names that open_clip takes: its own files', the students', and what a program has added to them."""
    package = find_spec("open_clip")
    assert package is not None
    places = [STUDENTS, *(Path(place, "model_configs") for place in package.submodule_search_locations or ())]
    imported = sys.modules.get("open_clip")
    return {path.stem for place in places for path in place.glob("*.json")}.union(
        imported.list_models() if imported else ()
    )


def refuse_absent(spec: str) -> None:
    """Raise `UserError` if a spec as `load_model` takes it is a path where no model is, or names no architecture."""
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
    name, colon, source = spec.partition(":")
    if not colon and ("/" in spec or spec.startswith(".")):
        raise UserError("there is no such folder", where=spec, do=SPEC_FORMS)
    if source.endswith(WEIGHT_SUFFIXES) and not Path(source).is_file():
        raise UserError("there is no such weights file", where=source, do=SPEC_FORMS)
    if not _is_architecture(name):
        raise _unknown_architecture(name, spec, SPEC_FORMS)


def refuse_no_student(config: str) -> None:
    """Raise `UserError` if what `create_student` takes is a path where nothing is, or a name that open_clip lacks.

    Which image models there are for `timm/NAME` only timm knows.
    """
    if config.endswith(".json"):
        if not Path(config).is_file():
            do = "Give a JSON file in the format of open_clip's model_configs"
            raise UserError("there is no such file", where=config, do=do)
    elif config.startswith(TIMM) or _is_architecture(config):
        return
    elif Path(config).is_dir():
        refuse_absent(config)
    else:
        raise _unknown_student(config)


def _is_architecture(name: str) -> bool:
    return name.replace("/", "-") in architectures()


def _unknown_student(name: str) -> UserError:
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or ("/" in name and Path(name).parent.is_dir()):
        return UserError("there is no such file or folder", where=name, do=f"A model's folder holds {CONFIG_NAME}")
    if any(row.name == name and row.role == "pruned" for row in PUBLISHED):
        return UserError(
            "its architecture is what a pruning run leaves",
            where=name,
            do=f"Run the recipe {name.lower()}-prune, and give that run's model folder",
        )
    hint = f"The path of a .json file works too, a model's folder, and {TIMM}{name} if timm has such an image model"
    return _unknown_architecture(name, "", hint)


def _unknown_architecture(name: str, where: str, hint: str) -> UserError:
    by_lower = {known.lower(): known for known in sorted(architectures())}
    close = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
    do = f"The closest are {', '.join(close)}. {hint}" if close else hint
    return UserError(f"open_clip knows no architecture {name!r}", where=where, do=do)

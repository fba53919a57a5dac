"""The students that papers published, by name.

One NAME.json each, in the format of open_clip's `model_configs`: TinyCLIP's manual ones (Wu et al., ICCV 2023), those
of CLIP-KD (Yang et al., CVPR 2024) that open_clip itself does not have, and teensy-tiny-clip's mixers. Importing this
package adds them to open_clip's own architectures, so whatever takes such a name takes these.

All that timm and open_clip have is as CLIP-KD has it, a linear projection without bias to 512 numbers, but for
mobilenetv3_small_100: open_clip asks timm how many features there are, is told 576, and gets 1024. Its projection is
timm's own classifier, which has a bias of 512 more numbers.
"""

import open_clip

from clip_models.spec import STUDENTS
from clip_models.students import mixer  # noqa: F401 - registers with timm
from clip_models.students.any_timm import timm_student
from clip_models.students.image_tower import ImageTower
from clip_models.students.text_tower import TextTower

open_clip.add_model_config(STUDENTS)


def student_names() -> tuple[str, ...]:
    """The names this package adds, in alphabetical order."""
    return tuple(sorted((path.stem for path in STUDENTS.glob("*.json")), key=str.lower))


__all__ = ["ImageTower", "TextTower", "student_names", "timm_student"]

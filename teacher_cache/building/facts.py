"""Who a teacher is, as a cache writes it down."""

from __future__ import annotations

import json

from shards import Folder, UserError
from teacher_cache.layout import TEACHER, TeacherFacts, publish_facts, read_teacher, refuse_another
from teacher_cache.teachers import Teacher


def teacher_facts(teacher: Teacher, name: str) -> TeacherFacts:
    return TeacherFacts(
        name=name,
        spec=teacher.spec,
        identity=json.loads(json.dumps(teacher.identity)),
        embed_dim=teacher.embed_dim,
        logit_scale=teacher.logit_scale,
        logit_bias=teacher.logit_bias,
        image_size=teacher.image_size,
        has_text=teacher.has_text,
        versions=teacher.versions,
    )


def publish_teacher(folder: Folder, facts: TeacherFacts) -> None:
    """Write who the teacher is, or refuse a folder that holds another's embeddings."""
    standing = read_teacher(folder)
    if standing is None:
        publish_facts(folder, TEACHER, facts)
        return
    refuse_another(
        folder,
        "this folder holds the embeddings of another teacher",
        standing.compared(),
        facts.compared(),
        "Give the new teacher another --teacher-name",
    )


def check_same(teacher: Teacher, name: str, fingerprint: str) -> None:
    """Raise `UserError` unless a teacher that was loaded is the one that a layer is of."""
    loaded = teacher_facts(teacher, name)
    if loaded.fingerprint != fingerprint:
        raise UserError(
            f"the teacher loaded here is {loaded.fingerprint} (weights {loaded.identity.get('weights')}), the cache is "
            f"of {fingerprint}",
            where=teacher.spec,
            do="Every machine must have the same weights under this name",
        )

"""Which layers one teacher has, and which it is to get."""

from __future__ import annotations

import logging
from typing import Any

from shards import Dataset, Folder, UserError, published_records
from shards.executor import Executor
from teacher_cache.building.batch_size import find_batch_size
from teacher_cache.building.settings import BuildSettings
from teacher_cache.layout import (
    LAYER,
    Kind,
    LayerFacts,
    TeacherFacts,
    publish_facts,
    read_layer,
    read_layers,
    refuse_another,
    views_layer_name,
)
from teacher_cache.views import ViewPolicy

log = logging.getLogger(__name__)


class LayerResolver:
    """One teacher's layers: those there are, and new ones for the views and captions they lack."""

    def __init__(self, settings: BuildSettings, dataset: Dataset, teacher: TeacherFacts, executor: Executor) -> None:
        self._settings, self._dataset, self._teacher, self._executor = settings, dataset, teacher, executor
        self._folder = Folder(settings.cache).child(teacher.name)
        self._common = {"dtype": settings.dtype, "precision": settings.forward.precision}
        self._batch_size = settings.batch_size

    def layers(self, policy: ViewPolicy) -> list[LayerFacts]:
        """Raises `UserError` if a layer that stands was built otherwise, or there is nothing to build."""
        settings, towers = self._settings, self._settings.towers
        found: list[LayerFacts] = []
        if self._teacher.image_size is not None and towers != "text":
            wanted = {**self._common, "policy": policy.identity()}
            views = [layer for layer in read_layers(self._folder, "views") if not self._withdrawn(layer)]
            for layer in views:
                self._check(layer, wanted)
            have = sum(len(layer.columns) for layer in views)
            if have < settings.views:
                columns = tuple(range(have, settings.views))
                views.append(self._new("views", views_layer_name(columns), columns, wanted))
            found += views
        if self._teacher.has_text and towers != "image":
            for source in settings.captions:
                name = f"captions-{source.name}"
                wanted = {**self._common, "source": source.identity()}
                standing = read_layer(self._folder.child(name))
                if standing is None or self._withdrawn(standing):
                    standing = self._new("captions", name, tuple(range(source.count)), wanted)
                else:
                    self._check(standing, wanted)
                found.append(standing)
        if not found:
            raise UserError(
                "this teacher has only texts to embed, and no captions were asked for",
                where=self._teacher.spec,
                do="Give --captions",
            )
        return found

    def _withdrawn(self, layer: LayerFacts) -> bool:
        """A layer of which nothing was made yet binds nobody: it is settled anew."""
        folder = self._folder.child(layer.name)
        if published_records(folder):
            return False
        folder.delete(LAYER)
        return True

    def _check(self, layer: LayerFacts, wanted: dict[str, Any]) -> None:
        where = self._folder.child(layer.name)
        if layer.dataset != self._dataset.name:
            raise UserError(
                f"this layer was built from dataset {layer.dataset!r}, {self._settings.shards} is "
                f"{self._dataset.name!r}",
                where=str(where),
                do="Use one cache folder a dataset",
            )
        refuse_another(
            where,
            "this layer was built otherwise",
            layer.settings,
            wanted,
            "Use the same settings, or another --teacher-name",
        )

    def _new(self, kind: Kind, name: str, columns: tuple[int, ...], wanted: dict[str, Any]) -> LayerFacts:
        if self._batch_size is None:
            settings = self._settings
            log.info("trying batch sizes for %s (--batch-size N saves that)", self._teacher.name)
            self._batch_size = self._executor.once(
                find_batch_size, self._teacher.spec, settings.forward, settings.towers
            )
        facts = LayerFacts(
            kind=kind,
            name=name,
            columns=columns,
            teacher=self._teacher.fingerprint,
            settings=wanted,
            dataset=self._dataset.name,
            batch_size=self._batch_size,
        )
        publish_facts(self._folder.child(name), LAYER, facts)
        return facts

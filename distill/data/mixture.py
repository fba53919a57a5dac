"""Several datasets as one order: each gives every batch its share, by weight.

A dataset of n samples and weight w has w·n samples in an epoch of the mixture, the next ones of its own order, which
begins again, shuffled anew, whenever it is through. So with weight 1 each sample is seen once an epoch, with 0.5 once
in two epochs, with 2 twice. What an epoch drops, because it fills no batch, is dropped of each in proportion.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distill.data.order import Order, shuffled
from shards import seed64


class Mixture:
    """Deals batches of several orders, as `Order` does of one; places count the shards of all datasets in a row.

    `orders`: one for each dataset, all of one batch size; `weights`: how often each dataset is seen in an epoch.
    `shares`: how many samples of each an epoch has.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], seed: int) -> None:
        self._orders, self._seed = tuple(orders), seed
        self.batch_size = orders[0].batch_size
        self.shares = [round(weight * order.samples) for order, weight in zip(orders, weights, strict=True)]
        self.samples = sum(self.shares)
        self.steps_per_epoch = self.samples // self.batch_size
        self._firsts = np.cumsum([0, *(order.shards for order in orders)])
        self._taken = self._cut()

    def _cut(self) -> npt.NDArray[np.int64]:
        """(steps_per_epoch + 1, datasets): how many samples of each the steps before have taken.

        Every step takes a batch. What is due at its end is share · step / steps of each; of the fractions, the largest
        are rounded up.
        """
        steps = self.steps_per_epoch
        rates = np.array(self.shares) * self.batch_size / max(1, self.samples)
        taken = np.zeros((steps + 1, len(self.shares)), np.int64)
        for step in range(1, steps + 1):
            due = rates * step - taken[step - 1]
            whole = np.maximum(np.floor(due), 0).astype(np.int64)
            while (left := self.batch_size - int(whole.sum())) != 0:
                missed = due - whole if left > 0 else np.where(whole > 0, whole - due, -np.inf)
                whole[np.argsort(-missed, kind="stable")[: abs(left)]] += int(np.sign(left))
            taken[step] = taken[step - 1] + whole
        return taken

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """The global batch of `step` (counted from 0 over all epochs): (batch_size, 2) of shard place and row."""
        epoch, place = divmod(step, self.steps_per_epoch)
        parts = []
        for number, order in enumerate(self._orders):
            start, stop = (epoch * self.shares[number] + self._taken[place : place + 2, number]).tolist()
            while start < stop:
                own, first = divmod(start, order.samples)
                part = order.span(own, first, min(first + stop - start, order.samples))
                parts.append(part + np.array([self._firsts[number], 0]))
                start += len(part)
        # Processes and micro-batches take neighbours: each shall have some of every dataset.
        return np.concatenate(parts)[shuffled(self.batch_size, seed64("mixture", self._seed, step))]

    def ahead(self, step: int) -> list[int]:
        """The shards that `step` and its followers read, of each dataset those of its window and of the next."""
        epoch, place = divmod(step, self.steps_per_epoch)
        found: list[int] = []
        for number, order in enumerate(self._orders):
            own, first = divmod(epoch * self.shares[number] + int(self._taken[place, number]), order.samples)
            found += [int(self._firsts[number]) + shard for shard in order.ahead_of(own, first)]
        return found

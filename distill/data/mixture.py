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

        A batch is taken of them together. What is due of each by the end of a step is share · batch_size · step /
        samples; of the fractions the largest are rounded up. In whole numbers, so that it is the same everywhere.
        """
        taken = np.zeros((self.steps_per_epoch + 1, len(self.shares)), np.int64)
        due = [0] * len(self.shares)
        for step in range(1, self.steps_per_epoch + 1):
            due = [rest + share * self.batch_size for rest, share in zip(due, self.shares, strict=True)]
            whole = [max(0, one // self.samples) for one in due]
            while (left := self.batch_size - sum(whole)) != 0:
                more = 1 if left > 0 else -1
                unmet = {at: more * (due[at] - one * self.samples) for at, one in enumerate(whole) if more > 0 or one}
                whole[max(unmet, key=unmet.__getitem__)] += more
            due = [one - number * self.samples for one, number in zip(due, whole, strict=True)]
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

"""How the learning rate moves in a training: up in a warm-up, then constant, or down to zero at the last epoch.

    constant 1    linear 1 - s    cosine (1 + cos(pi s)) / 2,    s = share of the epochs after the warm-up that is over

It is set before every step, and depends on the epoch and the step's place in it alone: a training that is resumed with
the same `epochs` goes on as it would have gone on. (Steps that float16's scaler skips count, but for RecBole's own
models.) The cosine is that of Loshchilov and Hutter, https://arxiv.org/abs/1608.03983, without
restarts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import torch


@dataclass(frozen=True)
class LearningRate:
    """A learning rate over a training.

    Attributes:
        highest: the rate where nothing lowers it.
        schedule: `constant`, `linear` or `cosine`.
        warmup: epochs, a part of one too, in which it rises from zero.
        epochs: of the whole training.
    """

    highest: float
    schedule: str
    warmup: float
    epochs: int

    def at(self, epoch: float) -> float:
        """The rate when so many epochs are over.

        >>> [LearningRate(0.1, "linear", 1, 5).at(epoch) for epoch in (0.5, 1, 3, 5)]
        [0.05, 0.1, 0.05, 0.0]
        """
        if epoch < self.warmup:
            return self.highest * epoch / self.warmup
        if self.schedule == "constant":
            return self.highest
        share = min(1.0, (epoch - self.warmup) / (self.epochs - self.warmup)) if self.epochs > self.warmup else 1.0
        return self.highest * (1 - share if self.schedule == "linear" else (1 + math.cos(math.pi * share)) / 2)

    @contextmanager
    def moves(self, optimizer: torch.optim.Optimizer, epoch: int, steps: int) -> Iterator[None]:
        """Sets the rate of every step that the optimizer makes in an epoch, in whatever loop.

        Args:
            optimizer: that trains.
            epoch: the number of the epoch, from 0.
            steps: how many there are in it.
        """
        done = count()

        def move(*_) -> None:
            rate = self.at(epoch + (next(done) + 0.5) / steps)  # in the middle of a step: none of a warm-up is lost
            for group in optimizer.param_groups:
                group["lr"] = rate

        hook = optimizer.register_step_pre_hook(move)
        try:
            yield
        finally:
            hook.remove()

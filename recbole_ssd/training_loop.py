"""One epoch of training in which the host never waits for the device.

A CUDA device works behind the host: kernels are queued, and whatever hands a number back (`.item()`, `if loss > 0`,
`.cpu()`) waits until the queue is empty, after which the device waits for the host. RecBole's loop does so twice a
step, for the loss and for its NaN check. Here the losses are summed on the device; a NaN stays in the sum, so that
looking at it every `READ_EVERY` steps and at the end misses none. What a model does in its forward pass is its own
affair: `torch.cuda.set_sync_debug_mode("error")` raises an error where something waits, and a test runs the loop so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from recbole_ssd.precision import Precision

# Steps between two looks at the sum of losses. A look empties the device's queue, once in 50 steps; and a training that
# went NaN computes at most 50 steps in vain.
READ_EVERY = 50


def train_epoch(
    batches: Iterable,
    loss_function: Callable,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    clip_grad_norm: dict | None = None,
    look: Callable[[int, Tensor], None] | None = None,
) -> float | tuple[float, ...]:
    """Trains on each batch once.

    Args:
        batches: on the device of the model.
        loss_function: gives the loss of a batch, a scalar, or its parts, a tuple of scalars that are added.
        optimizer: of all weights.
        precision: of the forward pass.
        clip_grad_norm: arguments of `torch.nn.utils.clip_grad_norm_`, or None.
        look: is called as look(steps done, sum of the losses so far) where waiting for the device is allowed: every
            `READ_EVERY` steps and after the last one. It may raise.

    Returns:
        The sum of the losses, a float, or a tuple of floats where the loss has parts.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    total, done = torch.zeros(()), 0
    for done, batch in enumerate(batches, start=1):
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast():
            losses = loss_function(batch)
        in_parts = isinstance(losses, tuple)
        precision.step(sum(losses) if in_parts else losses, optimizer, weights, clip_grad_norm)
        # float64: as exact as the Python floats of RecBole's loop
        total = total + (torch.stack(losses) if in_parts else losses).detach().double()
        if look and done % READ_EVERY == 0:
            look(done, total.sum())
    if look and done % READ_EVERY:
        look(done, total.sum())
    sums = total.tolist()
    return tuple(sums) if isinstance(sums, list) else sums

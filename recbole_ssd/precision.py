"""In which floating point type a model trains: float32, or autocast to bfloat16 or float16 (`enable_amp`, `amp_dtype`).

bfloat16 has float32's range and needs nothing else. A float16 gradient below 6e-8 is zero, so there the loss is scaled
up before the backward pass and the gradients down after it: https://pytorch.org/docs/stable/amp.html. Weights, the
optimizer's state and all scores of an evaluation stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Precision:
    """How one model is trained on one device.

    Args:
        device: of the model.
        amp_dtype: `bfloat16` or `float16`, the type that autocast takes; None trains in float32.

    Raises:
        RuntimeError: if the device cannot train in this type.
    """

    def __init__(self, device: torch.device, amp_dtype: str | None):
        _check(device, amp_dtype)
        self.device_type = device.type
        self.dtype = getattr(torch, amp_dtype) if amp_dtype else None
        # One for the whole training: RecBole's trainer makes a new one each epoch, which has to find its scale again.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)

    def autocast(self) -> torch.autocast:
        """The context of the forward pass."""
        return torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None)

    @contextmanager
    def by_default(self) -> Iterator[None]:
        """Makes `amp_dtype` the type of an autocast that names none, such as the one in RecBole's loop."""
        before = torch.get_autocast_dtype(self.device_type)
        torch.set_autocast_dtype(self.device_type, self.dtype or before)
        try:
            yield
        finally:
            torch.set_autocast_dtype(self.device_type, before)

    def step(
        self, loss: Tensor, optimizer: torch.optim.Optimizer, weights: list[Tensor], clip_grad_norm: dict | None
    ) -> None:
        """Backward pass and one step of the optimizer, with the gradients clipped at their true size.

        Args:
            loss: a scalar.
            optimizer: of `weights`.
            weights: whose gradients are clipped together.
            clip_grad_norm: arguments of `torch.nn.utils.clip_grad_norm_`, such as {'max_norm': 5}, or None.
        """
        self.scaler.scale(loss).backward()
        if clip_grad_norm:
            self.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(weights, **clip_grad_norm)
        self.scaler.step(optimizer)
        self.scaler.update()


def _check(device: torch.device, amp_dtype: str | None) -> None:
    if amp_dtype == "float16" and device.type == "cpu":
        raise RuntimeError(
            "'amp_dtype: float16' trains on a GPU and this run is on the CPU, whose arithmetic in float16 is slow: "
            "set amp_dtype to bfloat16, or enable_amp to False"
        )
    if amp_dtype == "bfloat16" and device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        if not native:  # torch would compute in float32 and round each result: slower than no autocast
            raise RuntimeError(
                f"'amp_dtype: bfloat16' needs a GPU of compute capability 8.0 or newer, this one is a "
                f"{torch.cuda.get_device_name(device)}: set amp_dtype to float16, or enable_amp to False"
            )

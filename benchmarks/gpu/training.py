"""Whole models, loader included: tokens a second, seconds of an epoch, memory, on a set shaped like KuaiRand-Pure.

SSD4Rec as its authors train it (`flip`, one target per prefix), as we do (all positions), and, on the same prefixes of
at most 200 items, beside RecBole's SASRec, Mamba4Rec and PackedSASRec of the same width, all in one precision. With
`repeat_bias` it is how `properties/tuned` trains. How often a step waits for the GPU is counted. Batches are prepared
and moved as our Trainer does it. Every model gets the same share of the time, the loading of its data included; an
epoch that does not fit into it is extrapolated from the steps that did.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from common import Steps

from recbole_ssd.data.prefetch import batches_on

from . import kuairand

AUTHORS = {"hidden_size": 256, "inner_size": 1024, "num_layers": 2, "d_state": 64, "d_conv": 4, "expand": 2}
AUTHORS |= {"headdim": 16, "dropout_prob": 0.2, "norm_embedding": True, "beta": 0.1, "mask_ratio": 0.2}
PREFIXES = {"supervision": "prefixes", "train_batch_size": 1024, "max_batch_tokens": 131_072}
FLIP = {**AUTHORS, **PREFIXES, "bidirectional": "flip"}
READOUT = {"supervision": "all_positions", "train_batch_size": 16_384, "bidirectional": "readout"}
SHORT = {"MAX_ITEM_LIST_LENGTH": 200}
WIDE = {"hidden_size": 256, "inner_size": 1024, "loss_type": "CE"}
TRANSFORMER = {**WIDE, "n_layers": 2, "n_heads": 2, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2}
MODELS = {
    "SSD4Rec, prefixes": ("SSD4Rec", FLIP),
    "SSD4Rec, all positions": ("SSD4Rec", {**AUTHORS, **READOUT}),
    "SSD4Rec, all positions, repeat_bias": ("SSD4Rec", {**AUTHORS, **READOUT, "repeat_bias": True}),
    "SSD4Rec, prefixes, L=200": ("SSD4Rec", {**FLIP, **SHORT}),
    "SASRec, prefixes, L=200": ("SASRec", {**TRANSFORMER, **SHORT, "train_batch_size": 1024}),
    "Mamba4Rec, prefixes, L=200": ("Mamba4Rec", {**WIDE, **PREFIXES, **SHORT, "num_layers": 2}),
    "PackedSASRec, prefixes, L=200": ("PackedSASRec", {**TRANSFORMER, **PREFIXES, **SHORT, "max_position": 200}),
}
SMALL = {"hidden_size": 32, "inner_size": 64, "train_batch_size": 64}  # of a dry run
DRY_USERS, DRY_STEPS = 200, 3
WARM_UP = 20  # steps: kernels are compiled and tuned, the allocator has seen batches of all sizes
EPOCHS = 5  # of one model at most
LEAST_S = 5.0  # of its steps, if loading took the share


class DeviceSteps(Steps):
    """Steps whose batches arrive one ahead of the model, as in our Trainer."""

    def batches(self) -> Iterator:
        return batches_on(self.device, self.data)


def measure(
    device: torch.device, precision: str, dry: bool, minutes: float, keep: Callable[[dict], object], only: str | None
) -> dict:
    """The figures of every model, or of `only` one; `keep` gets them after each."""
    deadline, models = time.monotonic() + 60 * minutes, [only] if only else list(MODELS)
    figures = {"precision": precision, "models": {}, "left_out": [], "failed": {}}
    with tempfile.TemporaryDirectory() as folder:
        figures["data"] = kuairand.write(Path(folder), DRY_USERS if dry else kuairand.USERS)
        print(figures["data"], flush=True)
        shared = {**kuairand.SETTINGS, "data_path": folder, "use_gpu": device.type == "cuda"}
        for place, name in enumerate(models):
            remaining = deadline - time.monotonic()
            if remaining < 0:
                figures["left_out"].append(name)
                continue
            model, settings = MODELS[name]
            settings = {**shared, **settings, **(SMALL if dry else {})}
            settings |= scan_of(model) | loss_of(model, precision, settings)
            ends = time.monotonic() + remaining / (len(models) - place)
            try:
                figures["models"][name] = one_model(model, precision, settings, ends, DRY_STEPS if dry else None)
            except Exception as error:  # the models after it are measured all the same
                figures["failed"][name] = repr(error)
            keep(figures)
            print(name, figures["models"].get(name) or figures["failed"][name], flush=True)
    keep(figures)
    return figures


def scan_of(model: str) -> dict:
    """Mamba4Rec takes mamba-ssm's compiled scan where it is installed, as its authors do, and else our packed one."""
    return {"scan_backend": "mamba_ssm"} if model == "Mamba4Rec" and find_spec("selective_scan_cuda") else {}


def loss_of(model: str, precision: str, settings: dict) -> dict:
    """Its products in the precision of the rest, as autocast has RecBole's; with `repeat_bias` ours are in float32."""
    narrow = precision == "bfloat16" and model != "SASRec" and not settings.get("repeat_bias")
    return {"loss_precision": "bfloat16"} if narrow else {}


def waits_of_a_step(steps: Steps) -> int:
    """How often the host waits for the device between two batches; 0 is what our training loop promises."""
    batch = next(steps.batches())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            steps.train_on(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # torch tells once that the mode itself may miss some: no wait
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def one_model(model: str, precision: str, settings: dict, ends: float, dry_steps: int | None) -> dict:
    """Epochs or parts of one until the clock says `ends`; the median of them, scaled to a whole one."""
    started = time.monotonic()
    steps = DeviceSteps(model, kuairand.NAME, precision, **settings)
    cuda, prepared_s = steps.device.type == "cuda", time.monotonic() - started
    steps.part_of_epoch(math.inf, steps=dry_steps or WARM_UP)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    epochs = []
    while not epochs or (time.monotonic() < ends and len(epochs) < EPOCHS and dry_steps is None):
        done, seconds = steps.part_of_epoch(max(LEAST_S, ends - time.monotonic()), dry_steps)
        epochs.append({"steps": done, "of": len(steps.data), "seconds": seconds})
    whole = [epoch for epoch in epochs if epoch["steps"] == epoch["of"]] or epochs
    epoch_s = sorted(epoch["seconds"] * epoch["of"] / epoch["steps"] for epoch in whole)[len(whole) // 2]
    packed = hasattr(steps.model, "packed")
    tokens = steps.data.n_tokens if packed else int(steps.data.dataset.inter_feat.lengths().sum())
    figures = {
        "epoch_s": epoch_s,
        "extrapolated": whole[0]["steps"] < whole[0]["of"],
        "tokens_per_s": tokens / epoch_s,
        "tokens": tokens,
        "padded_to": None if packed else steps.data.n_tokens,
        "targets": steps.data.n_targets,
        "parameters": sum(weight.numel() for weight in steps.model.parameters()),
        "peak_mb": torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
        "waits_a_step": waits_of_a_step(steps) if cuda and packed else None,
        "prepared_s": prepared_s,
        "scan": settings.get("scan_backend", "our packed scan") if model == "Mamba4Rec" else None,
        "settings": {key: value for key, value in settings.items() if key != "data_path"},
        "epochs": epochs,
    }
    del steps
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    return figures

"""RecBole's Trainer, told the epoch, timed, and saving plain checkpoints.

An epoch of a packed model is `training_loop.train_epoch`; RecBole's own models train in RecBole's own loop.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import cached_property
from time import perf_counter

import torch
from recbole.trainer import Trainer as RecBoleTrainer
from recbole.utils import early_stopping, get_gpu_usage, get_local_time, set_color
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from recbole_ssd.allocator import keep_freed_memory
from recbole_ssd.checkpoint import (
    check_groups,
    check_same_items,
    load_weights,
    plain_other,
    random_state,
    read_checkpoint,
    set_random_state,
    write_checkpoint,
)
from recbole_ssd.compat import Collector
from recbole_ssd.data.dataloader import is_packed
from recbole_ssd.data.prefetch import batches_on
from recbole_ssd.environment import check_folder
from recbole_ssd.learning_rate import LearningRate
from recbole_ssd.optimizer import for_packed
from recbole_ssd.precision import Precision
from recbole_ssd.scores import has_nan, ranks_of
from recbole_ssd.training_loop import train_epoch


class _TimeIsUp(Exception):
    """`max_train_s` is over; leaves RecBole's `fit` between two epochs."""


def get_trainer(model_type, model_name: str) -> type:
    """The trainer of every model that runs here, with the arguments of RecBole's function."""
    return Trainer


class Trainer(RecBoleTrainer):
    """Trains and evaluates one model.

    Attributes:
        epoch_s (list of float): seconds of each training epoch, loader included.
        eval_s (list of float): seconds of each evaluation, loader included.
        valid_by_epoch (list of dict): `epoch`, `seconds` since the start of `fit`, and `result`.
        best_epoch (int or None): the epoch of the best validation.
        cut (bool): whether `max_train_s` ended the training.
        ranks (list or None): set it to a list, and `evaluate` appends one tuple of tensors for every batch:
            users, items (both as RecBole's numbers) and ranks of the targets.
    """

    def __init__(self, config, model):
        check_folder(config["checkpoint_dir"], "checkpoint_dir")
        check_folder("log_tensorboard", "the folder of TensorBoard")
        super().__init__(config, model)
        self.saved_model_file = _new_file(config)
        self.eval_collector = Collector(config)
        self.epoch_s = []
        self.eval_s = []
        self.valid_by_epoch = []
        self.best_epoch = None
        self.ranks = None
        self.cut = False
        self.learning_rate_at = LearningRate(
            highest=config["learning_rate"],
            schedule=config["lr_schedule"],
            warmup=config["warmup_epochs"],
            epochs=config["epochs"],
        )
        self._epoch = self._fit_started = self._validates = self._validated_after = self._items = self._resumed = None

    @cached_property
    def precision(self) -> Precision:
        """Built when training starts: a machine that cannot train in `amp_dtype` can still evaluate."""
        return Precision(self.device, self.config["amp_dtype"] if self.enable_amp else None)

    def fit(self, train_data, valid_data=None, *args, **kwargs):
        """RecBole's `fit`, with its arguments and results; it ends when `max_train_s` is over.

        Raises:
            ValueError: if the checkpoint that was resumed leaves no epoch to train: RecBole would overwrite it; or if
                it is of other items.
        """
        if self.start_epoch and self.start_epoch >= self.epochs:
            raise ValueError(
                f"nothing is left to train: the checkpoint is of epoch {self.start_epoch - 1}, counted from 0, and "
                f"'epochs' is {self.epochs}; set config['epochs'] higher before the Trainer is made"
            )
        if self.device.type == "cpu":
            keep_freed_memory()
        self._epoch, self._fit_started, self.cut = None, self._now(), False
        self._items = names_of_items(train_data)
        if self._resumed:
            items, path = self._resumed
            check_same_items(items, self._items, path)
        self._validates, self._validated_after = bool(valid_data) and self.eval_step > 0, None
        try:
            return super().fit(train_data, valid_data, *args, **kwargs)
        except _TimeIsUp:
            self._add_hparam_to_tensorboard(self.best_valid_score)
            return self.best_valid_score, self.best_valid_result

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """RecBole's `evaluate`, with its arguments and results.

        Raises:
            ValueError: if the checkpoint to load is none, truncated, or of another model or other items.
        """
        if load_best_model and eval_data:
            path = model_file or self.saved_model_file
            checkpoint = read_checkpoint(path, self.device)
            check_same_items(checkpoint.get("items"), names_of_items(eval_data), path)
            load_weights(self.model, checkpoint, self.config.given(), path)
            self.logger.info(f"Loaded the parameters of {path}")
        started = self._now()
        result = super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        self.eval_s.append(self._now() - started)
        return result

    def resume_checkpoint(self, resume_file):
        """RecBole's `resume_checkpoint`: the next `fit` starts after the epoch of the checkpoint.

        A packed model then trains bit by bit as if it had never stopped, as long as the learning rate is constant or
        `epochs` are the same; RecBole's own shuffle their rows anew.

        Raises:
            ValueError: if the checkpoint is none, truncated, or of another model.
        """
        checkpoint = read_checkpoint(resume_file, self.device)
        load_weights(self.model, checkpoint, self.config.given(), resume_file)
        self._resumed = checkpoint.get("items"), resume_file  # `fit` gets the data to hold them against
        check_groups(self.optimizer, checkpoint["optimizer"], resume_file)
        super().resume_checkpoint(resume_file)
        if "fused" in self.optimizer.defaults:  # the choice of the run that saved came with its state
            for group in self.optimizer.param_groups:
                group["fused"] = self.optimizer.defaults["fused"]
        if "random_state" in checkpoint:
            set_random_state(checkpoint["random_state"], self.device)
        if checkpoint.get("scaler"):
            self.precision.scaler.load_state_dict(checkpoint["scaler"])
        self.best_epoch = checkpoint["epoch"]
        self.best_valid_result = checkpoint.get("best_valid_result")

    def interrupted(self) -> str:
        """A sentence for a user who stopped the training: where the best epoch so far lies."""
        if not os.path.exists(self.saved_model_file):
            return "stopped: no epoch was finished and saved yet"
        epoch = "" if self.best_epoch is None else f" (epoch {self.best_epoch})"
        return f"stopped: the best epoch so far{epoch} is in {self.saved_model_file}"

    def _build_optimizer(self, **kwargs):
        built = super()._build_optimizer(**kwargs)
        return for_packed(built, self.model) if is_packed(self.config) else built

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        self._check_time(epoch_idx)
        self._epoch = epoch_idx
        if hasattr(train_data, "set_epoch"):
            train_data.set_epoch(epoch_idx)
        started = self._now()
        with self.learning_rate_at.moves(self.optimizer, epoch_idx, len(train_data)):
            if is_packed(self.config):
                loss = self._train_packed_epoch(train_data, loss_func, show_progress)
            else:
                with self.precision.by_default():
                    loss = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        self.epoch_s.append(self._now() - started)
        self.tensorboard.add_scalar("Train/learning_rate", self.optimizer.param_groups[0]["lr"], epoch_idx)
        self._log_figures(epoch_idx)
        return loss

    def _train_packed_epoch(self, train_data, loss_func, show_progress):
        self.model.train()
        words = set_color(f"Train {self._epoch:>5}", "pink")
        bar = tqdm(total=len(train_data), ncols=100, desc=words, disable=not show_progress)
        with bar, logging_redirect_tqdm() if show_progress else nullcontext():  # what is logged stands above the bar

            def look(done, total):
                self._check_nan(total)
                bar.set_postfix_str(set_color(f"loss {total.item() / done:.4f}{self._gpu_memory()}", "yellow"))

            batches = batches_on(self.device, _counted(train_data, bar))
            loss_func = loss_func or self.model.calculate_loss
            loss = train_epoch(batches, loss_func, self.optimizer, self.precision, self.clip_grad_norm, look)
        self._check_weights()
        return loss

    def _gpu_memory(self) -> str:
        return f"  GPU RAM: {get_gpu_usage(self.device)}" if self.device.type == "cuda" else ""

    def _check_time(self, epoch: int) -> None:
        """Ends the training before an epoch if the last validation, or without any the last epoch, came too late."""
        limit = self.config["max_train_s"]
        if limit is None or self._epoch is None:
            return
        spent = self._validated_after if self._validates else self._now() - self._fit_started
        if spent is None or spent <= limit:
            return
        self.cut = True
        best = "" if self.best_epoch is None else f"; the best epoch so far is {self.best_epoch}"
        self.logger.info(f"training ends after epoch {epoch - 1}: max_train_s ({limit} s) is over{best}")
        raise _TimeIsUp

    def _log_figures(self, epoch: int) -> None:
        """Logs what the model tells of itself after an epoch, if it has `epoch_figures()`."""
        figures = self.model.epoch_figures() if hasattr(self.model, "epoch_figures") else {}
        for name, value in figures.items():
            self.tensorboard.add_scalar(f"Model/{name}", value, epoch)
        if figures:
            text = "    ".join(f"{name} : {value:.4g}" for name, value in figures.items())
            self.logger.info(f"epoch {epoch} model [{text}]")

    def _valid_epoch(self, valid_data, show_progress=False):
        score, result = super()._valid_epoch(valid_data, show_progress)
        rule = (self.best_valid_score, self.cur_step, self.stopping_step, self.valid_metric_bigger)
        is_best = early_stopping(score, *rule)[-1]
        if is_best:
            self.best_epoch, self.best_valid_result = self._epoch, result
        self._validated_after = seconds = self._now() - self._fit_started
        self.valid_by_epoch.append({"epoch": self._epoch, "seconds": seconds, "result": dict(result)})
        return score, result

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        path = kwargs.pop("saved_model_file", self.saved_model_file)
        best = self.best_valid_result
        state = {
            "config": self.config.given(),
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": best and {name: float(value) for name, value in best.items()},
            "state_dict": self.model.state_dict(),
            "other_parameter": plain_other(self.model.other_parameter(), self.config["model"]),
            "optimizer": self.optimizer.state_dict(),
            "items": self._items,
            "random_state": random_state(self.device),
            "scaler": self.precision.scaler.state_dict(),
        }
        write_checkpoint(state, path)
        if verbose:
            self.logger.info(f"Saved {path}")

    def _check_nan(self, loss):
        if torch.isnan(loss):
            raise ValueError(
                f"the training loss is not a number (NaN) in epoch {self._epoch}: lower 'learning_rate', "
                "set 'clip_grad_norm', or turn 'enable_amp' off"
            )

    def _check_weights(self) -> None:
        """Before anything is saved: the loss of the last step says nothing of the weights that the step gave."""
        with torch.no_grad():
            total = torch.stack([weight.abs().max() for weight in self.model.parameters() if weight.numel()]).sum()
        if torch.isnan(total):
            raise ValueError(
                f"the weights are not numbers (NaN) after epoch {self._epoch}: lower 'learning_rate', "
                "set 'clip_grad_norm', or turn 'enable_amp' off"
            )

    def _full_sort_batch_eval(self, batched_data):
        interaction, scores, rows, items = super()._full_sort_batch_eval(batched_data)
        if has_nan(scores):  # RecBole would rank them first
            raise ValueError(
                f"{self.config['model']} scores items with NaN: lower 'learning_rate' or set 'clip_grad_norm'"
            )
        if self.ranks is not None:
            rows, items = rows.to(scores.device), items.to(scores.device)
            users = interaction[self.config["USER_ID_FIELD"]].to(scores.device)[rows]
            self.ranks.append((users.cpu(), items.cpu(), ranks_of(scores, rows, items).cpu()))
        return interaction, scores, rows, items

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()


def _counted(loader, bar):
    for batch in loader:
        yield batch
        bar.update()


def names_of_items(data) -> list[str]:
    """Those of a loader's data set as the model numbers them, the padding first."""
    return data.dataset.field2id_token[data.dataset.iid_field].tolist()


def _new_file(config) -> str:
    """A checkpoint that no other run writes: RecBole names it by model and second alone."""
    name = f"{config['model']}-{config['dataset']}-{get_local_time()}-{os.getpid()}"
    path = os.path.join(config["checkpoint_dir"], f"{name}.pth")
    count = 1
    while os.path.exists(path):
        count += 1
        path = os.path.join(config["checkpoint_dir"], f"{name}-{count}.pth")
    return path

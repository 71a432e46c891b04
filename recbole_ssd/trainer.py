"""RecBole's Trainer, told the epoch, timed, and saving plain checkpoints. Its loops are RecBole's own."""

from __future__ import annotations

import os
from time import perf_counter

import torch
from recbole.trainer import Trainer as RecBoleTrainer
from recbole.utils import early_stopping, get_local_time

from recbole_ssd.checkpoint import load_weights, plain_other, read_checkpoint, write_checkpoint
from recbole_ssd.compat import Collector
from recbole_ssd.environment import check_folder


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
        self._epoch = self._fit_started = None

    def fit(self, *args, **kwargs):
        """RecBole's `fit`, with its arguments and results."""
        self._fit_started = self._now()
        return super().fit(*args, **kwargs)

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """RecBole's `evaluate`, with its arguments and results.

        Raises:
            ValueError: if the checkpoint to load is none, truncated, or of another model.
        """
        if load_best_model and eval_data:
            path = model_file or self.saved_model_file
            load_weights(self.model, read_checkpoint(path, self.device), self.config.given(), path)
            self.logger.info(f"Loaded the parameters of {path}")
        started = self._now()
        result = super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        self.eval_s.append(self._now() - started)
        return result

    def resume_checkpoint(self, resume_file):
        """RecBole's `resume_checkpoint`: the next `fit` starts after the epoch of the checkpoint.

        Raises:
            ValueError: if the checkpoint is none, truncated, or of another model.
        """
        checkpoint = read_checkpoint(resume_file, self.device)
        load_weights(self.model, checkpoint, self.config.given(), resume_file)
        super().resume_checkpoint(resume_file)
        self.best_epoch = checkpoint["epoch"]
        self.best_valid_result = checkpoint.get("best_valid_result")

    def interrupted(self) -> str:
        """A sentence for a user who stopped the training: where the best epoch so far lies."""
        if not os.path.exists(self.saved_model_file):
            return "stopped: no epoch was finished and saved yet"
        epoch = "" if self.best_epoch is None else f" (epoch {self.best_epoch})"
        return f"stopped: the best epoch so far{epoch} is in {self.saved_model_file}"

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        self._epoch = epoch_idx
        if hasattr(train_data, "set_epoch"):
            train_data.set_epoch(epoch_idx)
        started = self._now()
        loss = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        self.epoch_s.append(self._now() - started)
        self._log_figures(epoch_idx)
        return loss

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
        seconds = self._now() - self._fit_started
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

    def _full_sort_batch_eval(self, batched_data):
        interaction, scores, rows, items = super()._full_sort_batch_eval(batched_data)
        if torch.isnan(scores).any():  # RecBole would rank them first
            raise ValueError(
                f"{self.config['model']} scores items with NaN: lower 'learning_rate' or set 'clip_grad_norm'"
            )
        if self.ranks is not None:
            rows, items = rows.to(scores.device), items.to(scores.device)
            target = scores[rows, items].unsqueeze(1)  # (targets, 1)
            ranks = 1 + (scores[rows] > target).sum(dim=1)  # (targets,)
            users = interaction[self.config["USER_ID_FIELD"]].to(scores.device)[rows]
            self.ranks.append((users.cpu(), items.cpu(), ranks.cpu()))
        return interaction, scores, rows, items

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()


def _new_file(config) -> str:
    """A checkpoint that no other run writes: RecBole names it by model and second alone."""
    name = f"{config['model']}-{config['dataset']}-{get_local_time()}-{os.getpid()}"
    path = os.path.join(config["checkpoint_dir"], f"{name}.pth")
    count = 1
    while os.path.exists(path):
        count += 1
        path = os.path.join(config["checkpoint_dir"], f"{name}-{count}.pth")
    return path

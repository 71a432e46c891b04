"""Every guard against RecBole's age, and the failure that each one prevents.

RecBole 1.2.1 is from 2025 and was written against numpy 1.x and torch 1.x. What is mended elsewhere, because
it is a method of a class of ours: checkpoints that torch >= 2.6 refuses (trainer.py), the crash of the first
download (data/dataset.py), command line and CUDA_VISIBLE_DEVICES read behind the user's back (config.py).
`recbole.quick_start` is never imported: its first line needs ray.
"""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import numpy as np
import torch
from recbole.evaluator.collector import Collector as RecBoleCollector
from torch import Tensor

from recbole_ssd.scores import hits_of

# Names that numpy 1.24 and 2.0 took away and RecBole still asks for.
_NUMPY_ALIASES = {
    "bool": np.bool_,  # AttributeError in evaluator/metrics.py (GAUC)
    "int": np.int64,  # AttributeError in Config.compatibility_settings of plain RecBole
    "float": np.float64,  # AttributeError in data/interaction.py: no batch can be built
    "complex": np.complex128,  # AttributeError in Config.compatibility_settings of plain RecBole
    "object": np.object_,  # AttributeError in Config.compatibility_settings of plain RecBole
    "str": np.str_,  # AttributeError in trainer/hyper_tuning.py
    "long": np.int64,  # AttributeError in model/layers.py (GRU4RecF, SASRecF, FDSA on numpy 1.26)
    "unicode": np.str_,  # AttributeError in Config.compatibility_settings of plain RecBole
    "float_": np.float64,  # AttributeError in Config.compatibility_settings of plain RecBole
    "complex_": np.complex128,  # AttributeError in Config.compatibility_settings of plain RecBole
    "unicode_": np.str_,  # AttributeError in Config.compatibility_settings of plain RecBole
}


def apply() -> None:
    """Puts the guards in place that must stand before RecBole runs. Calling it again changes nothing."""
    for name, target in _NUMPY_ALIASES.items():
        if name not in vars(np):  # not hasattr: that warns for some of these names
            setattr(np, name, target)
    # Screens full of FutureWarnings about lines of RecBole's (fillna(inplace=True), cuda.amp).
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")


def sequential_models() -> ModuleType:
    """RecBole's package of sequential models, imported without what its SINE does to the whole process.

    sine.py:25 switches torch's anomaly detection on, for every model and for good: a step of GRU4Rec or SASRec then
    takes twice as long (benchmarks/training.py).
    """
    enabled = torch.is_anomaly_enabled()
    module = importlib.import_module("recbole.model.sequential_recommender")
    torch.autograd.set_detect_anomaly(enabled)
    return module


class _Others:
    """A register of what metrics need, but for one thing."""

    def __init__(self, register, done: str):
        self.register, self.done = register, done

    def need(self, key: str) -> bool:
        return key != self.done and self.register.need(key)


class Collector(RecBoleCollector):
    """RecBole's Collector that also carries what is no tensor.

    ItemCoverage, AveragePopularity, GiniIndex and TailPercentage die in plain RecBole 1.2.1 with "'int'
    object has no attribute 'cpu'": the counts of the training data lie among the tensors. And what RecBole finds hits
    with, a matrix of the size of the scores, takes a third of an evaluation's time on a CPU.
    """

    def __init__(self, config):
        super().__init__(config)
        self.finds_hits = self.register.need("rec.topk")
        self.register = _Others(self.register, "rec.topk")

    def eval_batch_collect(self, scores_tensor, interaction, positive_u, positive_i):
        """Collects from a batch what the metrics need, as RecBole's method does."""
        if self.finds_hits:
            best = scores_tensor.topk(max(self.topk), dim=-1).indices
            rows, items = positive_u.to(best.device), positive_i.to(best.device)
            self.data_struct.update_tensor("rec.topk", hits_of(best, rows, items))
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)

    def get_data_struct(self):
        """Gives the collected data, as RecBole's method does."""
        collected = self.data_struct._data_dict
        counts = {name: value for name, value in collected.items() if not isinstance(value, Tensor)}
        for name in counts:
            del collected[name]
        struct = super().get_data_struct()
        collected.update(counts)
        struct._data_dict.update(counts)
        return struct

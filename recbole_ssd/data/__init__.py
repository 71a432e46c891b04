"""Data sets as slices and batches as packed rows. Start with `preparation.py`."""

from recbole_ssd.data.dataset import SequentialDataset
from recbole_ssd.data.fingerprint import split_fingerprint
from recbole_ssd.data.preparation import create_dataset, data_preparation

__all__ = ["SequentialDataset", "create_dataset", "data_preparation", "split_fingerprint"]

"""recbole-ssd: next-item recommenders on packed streams, as a RecBole 1.2.1 plug-in.

The names that RecBole users know are imported from here: `Config`, `create_dataset`, `data_preparation`,
`get_model`, `get_trainer`, `Trainer`, `init_seed`, `init_logger`.
"""

from recbole_ssd import compat

compat.apply()  # before the lines below import RecBole's parts

from recbole.utils import init_seed  # noqa: E402

from recbole_ssd.config import Config  # noqa: E402
from recbole_ssd.data import create_dataset, data_preparation  # noqa: E402
from recbole_ssd.logger import init_logger  # noqa: E402
from recbole_ssd.model_lookup import get_model  # noqa: E402
from recbole_ssd.quick_start import load_data_and_model, objective_function, run_recbole_ssd  # noqa: E402
from recbole_ssd.recommendation import recommend  # noqa: E402
from recbole_ssd.serving import load_model  # noqa: E402
from recbole_ssd.trainer import Trainer, get_trainer  # noqa: E402
from recbole_ssd.version import __version__  # noqa: E402

__all__ = [
    "Config",
    "Trainer",
    "__version__",
    "create_dataset",
    "data_preparation",
    "get_model",
    "get_trainer",
    "init_logger",
    "init_seed",
    "load_data_and_model",
    "load_model",
    "objective_function",
    "recommend",
    "run_recbole_ssd",
]

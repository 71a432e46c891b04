"""One experiment on one page: settings, data, model, training, evaluation, result."""

from __future__ import annotations

from logging import getLogger

from recbole.utils import init_seed

from recbole_ssd.checkpoint import check_same_items, load_weights, read_checkpoint
from recbole_ssd.config import Config
from recbole_ssd.data import create_dataset, data_preparation, split_fingerprint
from recbole_ssd.environment import commit, is_watched
from recbole_ssd.logger import init_logger, log_file
from recbole_ssd.result import check_result_file, describe, make_result, write_ranks, write_result
from recbole_ssd.trainer import get_trainer, names_of_items


def run_recbole_ssd(model=None, dataset=None, config_file_list=None, config_dict=None, saved=True) -> dict:
    """Trains a model, evaluates its best epoch on the test data, and gives the result.

    Args:
        model (str or type, optional): name or class of the model, ours or RecBole's.
        dataset (str, optional): name of the data set.
        config_file_list (list of str, optional): YAML files of settings.
        config_dict (dict, optional): settings that win over the files.
        saved (bool): whether to keep the best epoch in a checkpoint; without one the last epoch is tested.

    Returns:
        RecBole's keys `best_valid_score`, `valid_score_bigger`, `best_valid_result` and `test_result`, and
        those of the result file (see `recbole_ssd.result.make_result`).

    Raises:
        ValueError: if settings or data cannot be used; the sentence says which and what to do.
    """
    config = Config(model, dataset, config_file_list, config_dict)
    return _run(config, saved=saved, verbose=True)


def objective_function(config_dict=None, config_file_list=None, saved=True) -> dict:
    """One trial of a search over settings, as RecBole's HyperTuning calls it."""
    config = Config(config_file_list=config_file_list, config_dict=config_dict)
    return _run(config, saved=saved, verbose=False)


def load_data_and_model(model_file: str, model=None, config_dict=None) -> tuple:
    """Builds again what a checkpoint was trained on, with its weights.

    Args:
        model_file: a checkpoint of ours. It is read as plain data: no code of the file is run.
        model (type, optional): the model's class, where its name alone does not find it.
        config_dict (dict, optional): settings that win over the checkpoint's, such as `data_path` on another machine.

    Returns:
        config, model, dataset, train_data, valid_data and test_data, as RecBole's function gives them; the model is
        set to evaluate, without dropout and masks.

    Raises:
        ValueError: if the file is no checkpoint, or its data are not there or not what they were.
    """
    checkpoint = read_checkpoint(model_file)
    config = Config(model, config_dict={**checkpoint["config"], **(config_dict or {})})
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    dataset, train_data, valid_data, test_data, model = _build(config)
    check_same_items(checkpoint.get("items"), names_of_items(train_data), model_file)
    load_weights(model, checkpoint, config.given(), model_file)
    model.eval()
    return config, model, dataset, train_data, valid_data, test_data


def _run(config: Config, saved: bool, verbose: bool) -> dict:
    check_result_file(config["result_file"])
    commit()  # what is imported now is what runs, whatever the checkout becomes meanwhile
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    getLogger().info(config)

    dataset, train_data, valid_data, test_data, model = _build(config)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    show_progress = config["show_progress"] and verbose and is_watched()
    try:
        best_valid_score, best_valid_result = trainer.fit(
            train_data, valid_data, verbose=verbose, saved=saved, show_progress=show_progress
        )
    except KeyboardInterrupt:
        getLogger().warning(trainer.interrupted())
        raise
    trainer.ranks = [] if config["save_ranks"] else None
    test_result = trainer.evaluate(test_data, load_best_model=saved, show_progress=show_progress)
    ranks, trainer.ranks = trainer.ranks, None
    other_result = None
    if config["both_protocols"]:
        with test_data.other_history():
            other_result = trainer.evaluate(test_data, load_best_model=False, show_progress=show_progress)
        trainer.eval_s.pop()  # the seconds of a run are those that any run takes
    trainer.tensorboard.close()

    more = {
        "split_fingerprint": split_fingerprint(valid_data, test_data),
        "best_valid_score": best_valid_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "train_loss": list(trainer.train_loss_dict.values()),
        "checkpoint": trainer.saved_model_file if saved else None,
        "log_file": log_file(),
    }
    result = make_result(config, trainer, train_data, best_valid_result, test_result, other_result, **more)
    _report(result, config, ranks, train_data, test_data)
    return result


def _report(result: dict, config: Config, ranks: list | None, train_data, test_data) -> None:
    """Logs the result and writes the files that were asked for."""
    logger = getLogger()
    logger.info("result\n" + describe(result))
    if config["save_ranks"]:  # before the result: whoever finds that finds its ranks too
        logger.info(f"ranks written to {write_ranks(ranks, train_data, test_data, config)}")
    if config["result_file"]:
        write_result(result, config["result_file"])
        logger.info(f"result written to {config['result_file']}")


def _build(config: Config) -> tuple:
    """Data set, the three loaders and a fresh model."""
    logger = getLogger()
    dataset = create_dataset(config)
    logger.info(dataset)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = config.model_class(config, train_data.dataset).to(config["device"])
    logger.info(model)
    for note in config.unread():
        logger.warning(note)
    return dataset, train_data, valid_data, test_data, model

"""What a run asks of a data set beyond histories: enough items, and the item features that a model reads."""

from __future__ import annotations


def check_items(config, dataset):
    """Refuse a data set with fewer items than the metrics or the model rank.

    Args:
        config (recbole_ssd.Config): Reads topk and reranker_CAN_NUM (GRU4RecCPR, SASRecCPR).
        dataset (SequentialDataset): As read and filtered.

    Raises:
        ValueError: If there are too few.
    """
    items = dataset.item_num - 1
    topk = config["topk"] if isinstance(config["topk"], (list, tuple)) else [config["topk"]]
    rerankers = str(config["reranker_CAN_NUM"] or 0).split(",")
    for key, number in (("topk", max(topk)), ("reranker_CAN_NUM", max(map(int, rerankers)))):
        if number > items:
            raise ValueError(
                f"'{key}' {config[key]} asks for more items than the {items} of data set "
                f"'{dataset.dataset_name}': set a smaller number (and with 'topk' the valid_metric)"
            )


def check_features(config, dataset):
    """Refuse a data set without the item features that FDSA, GRU4RecF or SASRecF read.

    Args:
        config (recbole_ssd.Config): Reads selected_features.
        dataset (SequentialDataset): As read and filtered.

    Raises:
        ValueError: If one is missing.
    """
    found = [] if dataset.item_feat is None else list(dataset.item_feat.columns)
    missing = [name for name in config["selected_features"] or [] if name not in found]
    if missing:
        raise ValueError(
            f"{config['model']} reads the item features {', '.join(missing)} (selected_features) and "
            f"{dataset.dataset_path}/{dataset.dataset_name}.item does not give them (columns: "
            f"{', '.join(found) or 'none'}): set selected_features to columns of that file"
        )

"""PackedSASRec is RecBole's SASRec, packed: with its weights it gives its scores."""

import torch
from recbole.model.sequential_recommender.sasrec import SASRec

from recbole_ssd import Config

from .conftest import Catalogue, packed, padded, random_histories

NAMES = {
    "trm_encoder.layer.": "layers.",
    "multi_head_attention.LayerNorm.": "LayerNorm.",
    "multi_head_attention.": "mixer.",
    "feed_forward.dense_1.": "feed_forward.w_1.",
    "feed_forward.dense_2.": "feed_forward.w_2.",
    "position_embedding.": "position.embedding.",
}


def renamed(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def test_scores_are_those_of_recboles_sasrec_with_its_weights(build):
    length = 80
    settings = {"hidden_size": 16, "inner_size": 32, "initializer_range": 0.3, "MAX_ITEM_LIST_LENGTH": length}
    config = Config("SASRec", "tiny", config_dict={**settings, "gpu_id": "", "train_neg_sample_args": None})
    torch.manual_seed(1)
    theirs = SASRec(config, Catalogue()).eval().double()
    ours = build("PackedSASRec", max_position=length).double()
    ours.load_state_dict({renamed(name): value for name, value in theirs.state_dict().items()})

    histories = random_histories()
    rows = padded(histories)
    rows.interaction["item_id_list"] = torch.nn.functional.pad(
        rows["item_id_list"], (0, length - rows["item_id_list"].shape[1])
    )
    with torch.no_grad():
        want, got = theirs.full_sort_predict(rows), ours.full_sort_predict(packed(histories))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_without_positions_only_the_set_of_items_counts_in_one_layer(build):
    model = build("PackedSASRec", max_position=None, n_layers=1)
    with torch.no_grad():
        one, other = model.full_sort_predict(packed([[3, 5, 7, 9], [7, 5, 3, 9]]))
    torch.testing.assert_close(one, other)


def test_positions_count_from_the_first_item_and_the_last_ones_share(build):
    model = build("PackedSASRec", max_position=5)
    stream = model.stream(packed([[1] * 8, [1] * 3]))
    vectors = model.position(torch.zeros(11, 16), stream.segments)
    table = model.position.embedding.weight
    torch.testing.assert_close(vectors, table[[0, 1, 2, 3, 4, 4, 4, 4, 0, 1, 2]])

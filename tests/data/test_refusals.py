"""What bad data get: a sentence that names file, column and line, and says what to do."""

import re
import urllib.error

import pytest

from recbole_ssd.data import create_dataset, data_preparation, download

GOOD = [
    ("u0", "a", 1),
    ("u0", "b", 2),
    ("u0", "c", 3),
    ("u0", "d", 4),
    ("u1", "a", 1),
    ("u1", "b", 2),
    ("u1", "c", 3),
]
HEADER = "user_id:token\titem_id:token\ttimestamp:float"

FILES = {
    "nan time": (["u0\ta\tnan", *GOOD], HEADER, {}, "toy.inter, column 'timestamp': .* on line 2"),
    "missing time": ([*GOOD, "u0\te\t"], HEADER, {}, "toy.inter, column 'timestamp': .* on line 9"),
    "infinite time": ([*GOOD, "u0\te\tinf"], HEADER, {}, "got inf on line 9"),
    "many bad times": ([*GOOD, *["u0\te\t"] * 5], HEADER, {}, "on line 9, 10, 11 and 2 more"),
    "unreadable number": (
        [*GOOD, "u0\te\tnoon"],
        HEADER,
        {},
        "toy.inter, line 9, column 'timestamp': .* got 'noon'",
    ),
    "no time column": (["u0\ta"], "user_id:token\titem_id:token", {}, "no column 'timestamp' .*TIME_FIELD"),
    "no user column": (["a\t1"], "item_id:token\ttimestamp:float", {}, "no column 'user_id' .*USER_ID_FIELD"),
    "no item column": (["u\t1"], "user_id:token\ttimestamp:float", {}, "no column 'item_id' .*ITEM_ID_FIELD"),
    "time is text": (GOOD, HEADER.replace("timestamp:float", "timestamp:token"), {}, "expected type float"),
    "item is a number": (GOOD, HEADER.replace("item_id:token", "item_id:float"), {}, "expected type token"),
    "time not loaded": (
        GOOD,
        HEADER,
        {"unload_col": {"inter": ["timestamp"]}, "load_col": None},
        "is not loaded",
    ),
    "commas": (
        ["u0,a,1"],
        HEADER.replace("\t", ","),
        {},
        r"line 1, column 1: expected name:type .*field_separator",
    ),
    "commas below a good header": (["u0,a,1"], HEADER, {}, "line 2: expected 3 columns .* got 1"),
    "no types": (
        GOOD,
        "user_id\titem_id\ttimestamp",
        {},
        "line 1, column 1: expected name:type .* got 'user_id'",
    ),
    "unknown type": (GOOD, HEADER.replace("float", "int"), {}, "column 3: .* got 'timestamp:int'"),
    "a line too long": ([*GOOD, "u0\te\t5\t6"], HEADER, {}, "toy.inter, line 9: expected 3 columns .* got 4"),
    "a line too short": ([*GOOD, "u0\te"], HEADER, {}, "toy.inter, line 9: expected 3 columns .* got 2"),
    "no records": ([], HEADER, {}, "toy.inter has a header and no records"),
    "one event each": (GOOD[3:5], HEADER, {}, "toy.inter: no training rows"),
    "nothing to test": (GOOD[:2], HEADER, {}, "toy.inter: no test rows"),
    "all filtered": (
        GOOD,
        HEADER,
        {"user_inter_num_interval": "[9,inf)"},
        r"leaves nothing .*user_inter_num_interval: \[9,inf\)",
    ),
    "a list for numbers": (GOOD, HEADER, {"val_interval": {"timestamp": [1, 2]}}, "the column holds numbers: give an"),
    "an interval for names": (GOOD, HEADER, {"val_interval": {"item_id": "[1,2]"}}, "the column holds names: give a"),
    "empty users": (["\ta\t1"], HEADER, {}, "leaves nothing"),
    "benchmark files": (GOOD, HEADER, {"benchmark_filename": ["train", "test"]}, "benchmark_filename"),
    "too many candidates": (
        GOOD,
        HEADER,
        {"eval_args": {"mode": "uni100"}},
        "uni100 asks for 100 .* there are 3",
    ),
    "no such encoding": (GOOD, HEADER, {"encoding": "utf-99"}, "cannot be decoded .unknown encoding: utf-99"),
    "a column twice": (["u\ta\t1\t1"], HEADER + "\ttimestamp:float", {}, "line 1: a column stands twice in"),
    "byte order mark": (GOOD, "\ufeff" + HEADER, {}, "byte order mark: .*--encoding=utf-8-sig"),
    "an open quotation": (
        [*GOOD[:2], 'u0\t"c\t3', *GOOD[3:], 'u1\t"d\t4'],
        HEADER,
        {},
        "toy.inter, line 4: a quoted value is not closed",
    ),
    "too few items for topk": (
        GOOD,
        HEADER,
        {"topk": [4, 10], "valid_metric": "NDCG@10"},
        r"'topk' \[4, 10\] asks .* than the 4 of",
    ),
    "too many popular": (GOOD, HEADER, {"eval_args": {"mode": "pop3"}}, "there are 1 in the training events"),
}


@pytest.mark.parametrize("rows, header, settings, sentence", FILES.values(), ids=FILES)
def test_bad_data_get_a_sentence(make_config, write_toy, rows, header, settings, sentence):
    write_toy(rows, header)
    with pytest.raises(ValueError) as caught:
        config = make_config(**settings)
        data_preparation(config, create_dataset(config))
    assert re.search(sentence, str(caught.value)), str(caught.value)


def test_few_items_and_missing_features_are_refused_by_name(make_config, write_toy):
    write_toy([(f"u{u}", f"i{k}", k) for u in range(3) for k in range(20)])
    for model, words in (
        ("GRU4RecCPR", "'reranker_CAN_NUM' 100 asks for more items than the 20 of data set 'toy'"),
        ("GRU4RecF", "GRU4RecF reads the item features class .*toy.item does not give them"),
    ):
        config = make_config(model=model)
        with pytest.raises(ValueError, match=words):
            data_preparation(config, create_dataset(config))


def test_a_quoted_value_may_hold_the_separator(make_config, write_toy):
    write_toy([*GOOD, 'u1\t"d\te"\t4'])
    assert "d\te" in create_dataset(make_config()).field2token_id["item_id"]


def test_a_token_never_seen_is_named(make_config, toy):
    dataset = create_dataset(make_config())
    assert dataset.token2id("item_id", ["i1", "i2"]).shape == (2,)
    for tokens in ("never", ["i1", "never"]):
        with pytest.raises(ValueError, match="item_id 'never' is not in .*toy.inter, or filtering removed it"):
            dataset.token2id("item_id", tokens)


def test_an_empty_file_is_named(make_config, write_toy):
    write_toy([]).write_text("")
    with pytest.raises(ValueError, match="toy.inter is empty"):
        create_dataset(make_config())


def test_bad_times_can_be_filtered_as_the_sentence_says(make_config, write_toy):
    write_toy([*GOOD, "u0\te\t", "u0\te\tinf"])
    config = make_config(val_interval={"timestamp": "(-inf,inf)"})
    assert create_dataset(config).inter_num == len(GOOD)


# ---- downloads


@pytest.fixture
def no_network(monkeypatch):
    def refuse(url):
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(download, "decide_download", refuse)


def test_without_a_network_the_place_of_the_file_is_named(make_config, tmp_path, no_network):
    with pytest.raises(
        RuntimeError, match=r"put amazon-beauty.inter into .*amazon-beauty/, or give --data_path=FOLDER"
    ):
        create_dataset(make_config("amazon-beauty"))
    assert not (tmp_path / "amazon-beauty").exists()


def test_a_download_that_breaks_off_leaves_no_folder(make_config, tmp_path, monkeypatch):
    def half(url, folder):
        (tmp_path / "seen").touch()
        raise RuntimeError("Stopped downloading due to interruption.")

    monkeypatch.setattr(download, "decide_download", lambda url: True)
    monkeypatch.setattr(download, "download_url", half)
    with pytest.raises(RuntimeError, match="could not be downloaded"):
        create_dataset(make_config("ml-1m"))
    assert (tmp_path / "seen").exists() and not (tmp_path / "ml-1m").exists()


def test_a_download_that_another_process_finished_first_is_taken(make_config, tmp_path, monkeypatch):
    def slower(url, folder):
        (tmp_path / "ml-1m").mkdir()
        (tmp_path / "ml-1m" / "ml-1m.inter").write_text(
            "\n".join([HEADER, *["\t".join(map(str, row)) for row in GOOD]])
        )
        raise OSError("Directory not empty")

    monkeypatch.setattr(download, "decide_download", lambda url: True)
    monkeypatch.setattr(download, "download_url", slower)
    config = make_config("ml-1m", user_inter_num_interval=None, item_inter_num_interval=None)
    assert create_dataset(config).inter_num == len(GOOD)


def test_a_download_is_unpacked_into_its_place(make_config, tmp_path, monkeypatch):
    import zipfile

    def fetch(url, folder):
        archive = f"{folder}/Amazon_Beauty.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("Amazon_Beauty.inter", "\n".join([HEADER, *["\t".join(map(str, row)) for row in GOOD]]))
        return archive

    monkeypatch.setattr(download, "decide_download", lambda url: True)
    monkeypatch.setattr(download, "download_url", fetch)
    config = make_config("amazon-beauty", user_inter_num_interval=None, item_inter_num_interval=None)
    assert create_dataset(config).inter_num == len(GOOD)
    assert (tmp_path / "amazon-beauty" / "amazon-beauty.inter").is_file()


def test_an_unknown_dataset_is_looked_for_beside_its_place(make_config, toy):
    with pytest.raises(ValueError, match="no data set 'tay'.*Did you mean toy"):
        create_dataset(make_config("tay"))


def test_an_unknown_dataset_gets_a_suggestion(make_config):
    with pytest.raises(ValueError, match="no data set 'ml-1n'.*Did you mean .*ml-1m.*put ml-1n.inter into"):
        create_dataset(make_config("ml-1n"))


def test_a_data_path_one_folder_too_deep_is_seen(make_config, toy, tmp_path):
    with pytest.raises(ValueError, match=rf"The file lies in .*toy: give --data_path={tmp_path}\."):
        create_dataset(make_config(data_path=str(tmp_path / "toy")))
    with pytest.raises(ValueError, match="no data set 'toy.inter'.*Did you mean toy"):
        create_dataset(make_config("toy.inter"))


def test_a_folder_without_its_file_gets_a_sentence(make_config, tmp_path):
    (tmp_path / "toy").mkdir()
    with pytest.raises(ValueError, match="toy.inter does not exist: put toy.inter into"):
        create_dataset(make_config())

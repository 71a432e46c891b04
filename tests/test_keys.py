"""The keys that a model of ours reads are exactly the keys that its YAML file sets."""

from itertools import product

import pytest
import yaml

from recbole_ssd import Config, create_dataset, data_preparation
from recbole_ssd.layers.mixture import GATES
from recbole_ssd.model.mambarec import BLOCKS
from recbole_ssd.model.mixer import SSMS
from recbole_ssd.model_lookup import own_models
from recbole_ssd.settings import RECBOLE_PROPERTIES, listed_keys, properties_folder, read_yaml

CHOICES = {"ssm": SSMS, "block": BLOCKS, "gate": GATES}


class RecordingConfig(Config):
    """Notes every key that is asked for."""

    asked = None

    def __getitem__(self, key):
        if self.asked is not None:
            self.asked.add(key)
        return super().__getitem__(key)


def keys_read(model: str, settings: dict) -> set:
    """What the model's constructor asks of its config."""
    config = RecordingConfig(model, config_dict=settings)
    train = data_preparation(config, create_dataset(config))[0]
    config.asked = set()
    config.model_class(config, train.dataset)
    return config.asked


@pytest.mark.parametrize("model", own_models())
def test_a_model_reads_the_keys_of_its_yaml(run_folder, tiny, model):
    in_yaml = set(yaml.safe_load((properties_folder() / "model" / f"{model}.yaml").read_text()))
    choices = {key: words for key, words in CHOICES.items() if key in in_yaml}  # each word reads keys of its own
    variants = (dict(zip(choices, words)) for words in product(*choices.values()))
    read = set().union(*(keys_read(model, {**tiny, **variant}) for variant in variants))
    assert in_yaml <= read, "set and never read"
    assert read <= in_yaml | listed_keys() | {"device"}, "read and set nowhere"


@pytest.mark.parametrize("model", own_models())
def test_a_key_that_nobody_set_is_refused_by_name(run_folder, tiny, model):
    config = Config(model, config_dict=tiny)
    train = data_preparation(config, create_dataset(config))[0]
    del config.final_config_dict["hidden_size"]
    sentence = f"'hidden_size' is not set: add it to .*properties/model/{model}.yaml"
    with pytest.raises(ValueError, match=sentence):
        config.model_class(config, train.dataset)


def test_tuned_files_set_known_keys_of_their_model():
    for file in (properties_folder() / "tuned").glob("*.yaml"):
        model = file.stem.partition("-")[0]
        folder = properties_folder() if model in own_models() else RECBOLE_PROPERTIES
        of_model = set(read_yaml(folder / "model" / f"{model}.yaml"))
        assert set(yaml.safe_load(file.read_text())) <= of_model | listed_keys(), file


def test_no_key_of_every_run_is_a_key_of_one_of_recboles_models():
    """Ours are read after RecBole's files: a model of theirs would find our value under its own key."""
    ours = set(yaml.safe_load((properties_folder() / "overall.yaml").read_text()))
    theirs = {key for file in (RECBOLE_PROPERTIES / "model").glob("*.yaml") for key in read_yaml(file)}
    assert not ours & theirs


def test_authors_files_leave_nothing_of_the_tuned_ones():
    """They are read after the tuned file of the pair: what they do not name would stay."""
    folder = properties_folder() / "tuned"
    pairs = [(folder / file.name.replace("-authors", ""), file) for file in sorted(folder.glob("*-authors.yaml"))]
    pairs = [(tuned, authors) for tuned, authors in pairs if tuned.is_file()]
    assert pairs
    for tuned, authors in pairs:
        assert read_yaml(tuned).keys() <= read_yaml(authors).keys(), authors.name

"""Models of other packages: what CONTRIBUTING shows, taken from its text, is installed and trained."""

import re
import sys

import pytest

from recbole_ssd import Config, get_model, load_data_and_model, run_recbole_ssd
from recbole_ssd.model_lookup import model_lines
from tests.conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL).group(1)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(value, name) -> a package with CONTRIBUTING's model, and an entry point that names it."""

    def _install(value="my_package.mymodel:MyModel", name="MyModel"):
        package, info = tmp_path / "my_package", tmp_path / "my_package-1.0.dist-info"
        for folder in (package, info):
            folder.mkdir()
        (package / "__init__.py").write_text("")
        (package / "mymodel.py").write_text(block("python"))
        (package / "MyModel.yaml").write_text(block("yaml"))
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[recbole_ssd.models]\n{name} = {value}\n")
        monkeypatch.syspath_prepend(tmp_path)
        return package

    yield _install
    for module in [module for module in sys.modules if module.split(".")[0] == "my_package"]:
        del sys.modules[module]


def test_contributings_model_trains_by_name(install, run_folder, tiny):
    install()
    result = run_recbole_ssd("MyModel", config_dict={**tiny, "epochs": 2})
    assert result["config"]["num_layers"] == 2 and result["test_result"]
    line = next(line for line in model_lines() if line.startswith("MyModel"))
    assert line.split(maxsplit=1)[1] == "(package 'my-package')"


def test_its_keys_are_known_and_its_misspelt_keys_are_not(install, tiny):
    package = install()
    (package / "MyModel.yaml").write_text(block("yaml") + "my_own_key: 3\n")
    (package / "MyModel-tiny.yaml").write_text("my_own_key: 4\n")
    assert Config("MyModel", config_dict=tiny)["my_own_key"] == 4
    assert Config("MyModel", config_dict={**tiny, "my_own_key": 5})["my_own_key"] == 5
    with pytest.raises(ValueError, match="unknown key 'my_own_kee'.*Did you mean 'my_own_key'"):
        Config("MyModel", config_dict={**tiny, "my_own_kee": 5})


def test_a_class_runs_without_an_entry_point(install, run_folder, tiny):
    install(name="Another", value="my_package.mymodel:Another")
    from my_package.mymodel import MyModel

    checkpoint = run_recbole_ssd(MyModel, config_dict={**tiny, "epochs": 1})["checkpoint"]
    with pytest.raises(ValueError, match="there is no model 'MyModel'"):
        load_data_and_model(checkpoint)
    assert type(load_data_and_model(checkpoint, MyModel)[1]) is MyModel


def test_a_missing_key_names_the_file_of_the_plug_in(install, run_folder, tiny):
    package = install()
    config = Config("MyModel", config_dict=tiny)
    with pytest.raises(ValueError, match=re.escape(f"'d_state' is not set: add it to {package / 'MyModel.yaml'}")):
        config.required("d_state")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("Gone", "my_package.gone:Gone", "'Gone = my_package.gone:Gone' of package 'my-package' cannot be loaded"),
        ("Other", "my_package.mymodel:MyModel", "should name a class 'Other', it names"),
        ("SSD4Rec", "my_package.mymodel:MyModel", "several models are called 'SSD4Rec'"),
        ("GRU4Rec", "my_package.mymodel:MyModel", "several models are called 'GRU4Rec'"),
        ("MyModel", "torch.nn:Linear", "should name a class 'MyModel'"),
    ],
)
def test_broken_plug_ins_get_a_sentence_and_disturb_nobody(install, name, value, sentence):
    install(value, name)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        get_model(name)
    assert get_model("MambaRec").__name__ == "MambaRec"
    assert any(line.startswith(name) for line in model_lines())


def test_a_misspelt_plug_in_gets_a_suggestion(install):
    install()
    with pytest.raises(ValueError, match="Did you mean 'MyModel'"):
        get_model("MyModl")

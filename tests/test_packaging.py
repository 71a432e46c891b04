"""What is installed: one source of metadata, and the YAML files inside the wheel."""

import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import recbole_ssd
from recbole_ssd import compat, environment
from recbole_ssd.settings import properties_folder
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_package_is_listed(setup_cfg):
    listed = set(setup_cfg["options"]["packages"].split())
    found = {
        ".".join(folder.relative_to(ROOT).parts)
        for folder in [ROOT / "recbole_ssd", *(ROOT / "recbole_ssd").rglob("*")]
        if folder.is_dir() and (folder / "__init__.py").is_file()
    }
    assert listed == found | {"recbole_ssd.properties"}


def test_recboles_requirements_are_all_listed_where_recbole_is_not(setup_cfg):
    from importlib.metadata import requires

    needed = {line.split()[0].lower() for line in requires("recbole") if "extra ==" not in line}
    lines = [line for line in setup_cfg["options"]["install_requires"].splitlines() if line.strip()]
    names = {line.replace(">", "=").replace("<", "=").split("=")[0].strip().lower() for line in lines}
    assert needed - {"ray"} <= names
    assert any("recbole==1.2.1" in line and 'python_version < "3.12"' in line for line in lines)


def test_wheel_holds_the_properties_and_finds_them(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("recbole_ssd", "properties"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    (source / "README.md").write_text("recbole-ssd")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", str(source), *options], check=True)
    (wheel,) = tmp_path.glob("recbole_ssd-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        assert f"Version: {recbole_ssd.__version__}" in archive.read(metadata).decode()
    inside = tmp_path / "site" / "recbole_ssd" / "properties"
    ours = {file.relative_to(properties_folder()) for file in properties_folder().rglob("*.yaml")}
    assert {file.relative_to(inside) for file in inside.rglob("*.yaml")} == ours
    code = "from recbole_ssd.settings import properties_folder as folder; print(folder())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == inside


def test_compat_may_be_applied_again():
    import numpy as np

    before = dict(vars(np))
    compat.apply()
    assert dict(vars(np)) == before and np.float is np.float64


def test_public_names_are_recboles():
    names = {"Config", "create_dataset", "data_preparation", "get_model", "get_trainer", "Trainer"}
    names |= {"init_seed", "init_logger", "run_recbole_ssd", "load_data_and_model", "objective_function"}
    assert names <= set(recbole_ssd.__all__)
    assert all(hasattr(recbole_ssd, name) for name in recbole_ssd.__all__)
    assert "recbole.quick_start" not in sys.modules


def test_recboles_models_leave_anomaly_detection_off():
    """In a process of its own: plain RecBole switches it on with the first import, for good."""
    plain = "import recbole.model.sequential_recommender"
    ours = "from recbole_ssd import get_model; get_model('SASRec')"
    for code, expected in ((plain, "True"), (ours, "False")):
        code += "; import torch; print(torch.is_anomaly_enabled())"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.split()[-1] == expected


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_our_own_checkout(tmp_path, monkeypatch):
    """A copy in somebody's project has none, though that project has one."""

    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e@e", *words], check=True)

    place = tmp_path / "environment.py"
    place.write_text("a copy")
    (tmp_path / "mine.py").write_text("mine")
    git("init", "-q")
    git("add", "mine.py")
    git("commit", "-q", "-m", "mine")
    monkeypatch.setattr(environment, "__file__", str(place))
    assert environment.commit.__wrapped__() is None
    texts = [tmp_path / "README.md", tmp_path / "benchmarks" / "results" / "one.json"]
    texts[1].parent.mkdir(parents=True)
    for text in texts:
        text.write_text("a text")
    git("add", "environment.py", *texts)
    git("commit", "-q", "-m", "ours")
    for text in texts:
        text.write_text("changes no number")
    assert re.fullmatch("[0-9a-f]{7,}", environment.commit.__wrapped__())
    place.write_text("changed")
    assert environment.commit.__wrapped__().endswith("+changes")


def test_a_processor_is_named_with_its_generation(tmp_path):
    (tmp_path / "x86").write_text(
        "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nbugs\t\t:\n" * 2
    )
    (tmp_path / "arm").write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert environment._cpu_name(tmp_path / "x86") == "AMD EPYC, family 26 model 2"
    assert environment._cpu_name(tmp_path / "arm") == environment._cpu_name(tmp_path / "nothing") != ""

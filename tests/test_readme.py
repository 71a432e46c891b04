"""What the README says is what the files say."""

import tables

from recbole_ssd.model_lookup import builtin_models
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_are_made_from_their_data():
    assert README.count("<!-- /") == len(tables.PARTS)
    assert tables.filled(README) == README


def test_every_builtin_that_runs_is_named():
    missing = [name for name in builtin_models() if name not in README]
    assert not missing


def test_every_file_it_links_to_exists():
    targets = [part.split(")")[0] for part in README.split("](")[1:]]
    files = [target for target in targets if not target.startswith("http")]
    assert files and all((ROOT / file).exists() for file in files)

"""The report holds the numbers of its data, names what a reader must know, and stands on its own."""

import csv
import html.parser
import io
import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recbole_ssd.comparison import plots
from recbole_ssd.comparison.records import FAILED, read_record
from recbole_ssd.comparison.report import Report, write_report
from recbole_ssd.comparison.statistics import metric_values
from recbole_ssd.comparison.summary import by_group, summarize

MODELS = {"SSD4Rec": {}, "GRU4Rec": {"learning_rate": 0.1}, "SASRec": {}}


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path, "the command")


def tables_of(page: str) -> list:
    """The cells of every table of a page of HTML."""

    class Reader(html.parser.HTMLParser):
        tables, cell = [], None

        def handle_starttag(self, tag, attributes):
            if tag == "table":
                self.tables.append([])
            if tag == "tr":
                self.tables[-1].append([])
            if tag in ("td", "th"):
                self.cell = ""

        def handle_data(self, data):
            if self.cell is not None:
                self.cell += data

        def handle_endtag(self, tag):
            if tag in ("td", "th"):
                self.tables[-1][-1].append(self.cell)
                self.cell = None

    reader = Reader()
    reader.tables = []
    reader.feed(page)
    return reader.tables


def test_tables_hold_the_numbers_of_the_files(records, report, tmp_path):
    done = records(MODELS, seeds=3)
    write_report(done, report)
    page = (tmp_path / "report.html").read_text()
    accuracy, cost = (dict((line[0], line) for line in table) for table in tables_of(page)[:2])
    for label in MODELS:
        own = [record for record in done if record.run.label == label]
        files = [record.folder.ranks for record in own]
        means = []
        for file in files:
            with open(file) as lines:
                ranks = [int(line["rank"]) for line in csv.DictReader(lines)]
            means.append(statistics.fmean(1 / np.log2(rank + 1) if rank <= 10 else 0 for rank in ranks))
        shown = dict(zip(accuracy["model"], accuracy[label]))
        assert shown["test ndcg@10"] == f"{statistics.fmean(means):.4f} ± {statistics.stdev(means):.4f}"
        assert shown["seeds"] == "3"
        results = [json.loads(record.folder.result.read_text()) for record in own]
        valid = [result["best_valid_result"]["ndcg@10"] for result in results]
        assert shown["valid ndcg@10"] == f"{statistics.fmean(valid):.4f} ± {statistics.stdev(valid):.4f}"
        costs = dict(zip(cost["model"], cost[label]))
        assert costs["peak MB"] == f"{results[0]['peak_rss_mb']:.0f}"
        assert costs["epoch s"] == f"{results[0]['epoch_s'][0]:.2f}"
        assert costs["s to best epoch"] == f"{results[0]['valid_by_epoch'][2]['seconds']:.1f}"
    markdown = (tmp_path / "report.md").read_text()
    assert all(cell in markdown for line in accuracy.values() for cell in line)


def test_results_csv_has_every_run(records, report, tmp_path):
    done = records(MODELS)
    write_report(done, report)
    with open(tmp_path / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], int(row["seed"])) for row in rows] == [(r.run.label, r.run.seed) for r in done]
    for row, record in zip(rows, done):
        assert float(row["test ndcg@10"]) == pytest.approx(record.test("ndcg@10"), abs=1e-12)
        assert row["split_fingerprint"] == "0123456789ab" and row["cut"] == "False"


def test_summary_json_holds_the_numbers_of_the_tables(records, report, tmp_path):
    done = records({**MODELS, "failing": {"model": "GRU4Rec", "learning_rate": 0.5}}, seeds=3)
    done = [replace(record, state=FAILED) if record.run.label == "failing" else record for record in done]
    write_report(done, report)
    numbers = json.loads((tmp_path / "summary.json").read_text())
    assert (numbers["dataset"], numbers["metric"], numbers["commits"]) == ("tiny", "ndcg@10", ["1234567"])
    assert numbers["command"] == report.command and len(numbers["machines"]) == 1
    (table,) = numbers["tables"]
    assert (table["split_fingerprint"], table["users"]) == ("0123456789ab", 40)
    rows = {row["label"]: row for row in table["models"]}
    assert rows["failing"]["seeds"] == [] and "test" not in rows["failing"]
    models = {model.label: model for model in summarize(done, "ndcg@10")}
    first = models.pop(next(iter(MODELS)))
    assert rows[first.label]["difference"] is None
    for label in set(MODELS) - {first.label}:
        row, model = rows[label], models[label]
        assert row["test"]["ndcg@10"] == model.test("ndcg@10") and row["seeds"] == [2020, 2021, 2022]
        assert row["difference"]["low"] == model.difference.low and row["difference"]["p_holm"] == model.p_holm
        best = model.done[0].result["best_valid_result"]["ndcg@10"]
        assert len(row["curves"]) == 3 and row["curves"][0][-1][1] == pytest.approx(best)
        assert row["epoch_s"] == pytest.approx(model.done[0].result["epoch_s"][0])


def test_the_other_protocol_has_a_column_where_it_was_tested(records, report, tmp_path):
    other = {"test_result_other_history": {"ndcg@10": 0.4321, "hit@10": 0.5}}
    write_report(records(MODELS, GRU4Rec=other), report)
    accuracy = {row[0]: row for row in tables_of((tmp_path / "report.html").read_text())[0]}
    place = accuracy["model"].index("test ndcg@10, history excluded")
    assert [accuracy[label][place] for label in ("SSD4Rec", "GRU4Rec")] == ["", "0.4321 ± 0.0000"]
    (table,) = json.loads((tmp_path / "summary.json").read_text())["tables"]
    assert [row["test_other_history"] for row in table["models"]] == [[], [0.4321, 0.4321], []]


def test_users_split_protocol_and_seeds_are_told(records, report, tmp_path):
    write_report(records(MODELS), report)
    text = (tmp_path / "report.md").read_text()
    assert "40 users with 40 test targets, split fingerprint 0123456789ab; protocol A" in text
    assert "full ranking, history kept, time order exact; seeds 2020, 2021." in text
    assert "the command" in text and "learning_rate=0.1" in text


def test_the_difference_is_from_the_first_model(records, report, tmp_path):
    done = records(MODELS, seeds=3)
    models = {model.label: model for model in summarize(done, "ndcg@10")}
    mean = {label: statistics.fmean(model.test("ndcg@10")) for label, model in models.items()}
    assert models["SSD4Rec"].difference is None
    for label in ("GRU4Rec", "SASRec"):
        assert models[label].difference.mean == pytest.approx(mean[label] - mean["SSD4Rec"])
        assert models[label].p_holm >= models[label].difference.p
    assert models["GRU4Rec"].difference.low > 0  # its learning rate makes its ranks better
    assert models["GRU4Rec"].p_holm < 0.01 < models["SASRec"].p_holm


def test_one_seed_gives_no_interval_and_says_so(records, report, tmp_path):
    write_report(records(MODELS, seeds=1), report)
    text = (tmp_path / "report.md").read_text()
    assert (
        text.count("needs seeds") == 2 and "There is no interval" in text and "±" not in text.partition("###")[0][:900]
    )


def test_cut_runs_are_marked_in_every_table_and_picture(records, report, tmp_path):
    done = records(MODELS, SASRec={"cut": True})
    write_report(done, report)
    tables = tables_of((tmp_path / "report.html").read_text())
    rows = [line[0] for table in tables for line in table if line[0].startswith("SASRec")]
    assert len(rows) == 5 and set(rows) == {"SASRec (cut)"}
    assert "SASRec (cut)" in (tmp_path / "groups.csv").read_text()
    assert "ended by max_train_s" in (tmp_path / "report.md").read_text()
    models = summarize(done, "ndcg@10")
    legend = plots.curves(models, "ndcg@10").axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["SSD4Rec", "GRU4Rec", "SASRec (cut)"]


def test_some_cut_runs_are_counted(records):
    done = records({"SSD4Rec": {}})
    done[0].result["cut"] = True
    assert summarize(done, "ndcg@10")[0].name == "SSD4Rec (1 of 2 cut)"


def test_different_fingerprints_are_refused(records, report):
    done = records(MODELS, SASRec={"split_fingerprint": "ffffffffffff"})
    with pytest.raises(ValueError) as error:
        write_report(done, report)
    sentence = str(error.value)
    assert "tiny 0123456789ab: SSD4Rec, seed 2020, GRU4Rec, seed 2020, SSD4Rec, seed 2021" in sentence
    assert "tiny ffffffffffff: SASRec, seed 2020, SASRec, seed 2021" in sentence
    assert not (report.folder / "report.md").exists()


def test_two_protocols_have_two_tables_and_no_difference(records, report, tmp_path):
    models = {"SSD4Rec": {}, "GRU4Rec": {"time_order": "recbole"}}
    done = records(models, GRU4Rec={"split_fingerprint": "ffffffffffff"})
    write_report(done, report)
    tables = tables_of((tmp_path / "report.html").read_text())
    first = [line[0] for table in tables[:4] for line in table]
    assert first.count("SSD4Rec") == 4 and "GRU4Rec" not in first
    assert "ndcg@10 - SSD4Rec" not in (tmp_path / "report.md").read_text()
    assert (tmp_path / "1_curves.png").is_file() and (tmp_path / "2_curves.png").is_file()


def test_scores_that_are_all_alike_are_no_result(records, tmp_path):
    """Every rank is 1, which no evaluator found: such a run must not win the table."""
    (record,) = records({"SSD4Rec": {}}, seeds=1)
    text = record.folder.ranks.read_text()
    record.folder.ranks.write_text(re.sub(r"^(u\d+,i\d+),\d+", r"\1,1", text, flags=re.M))
    again = read_record(tmp_path / "runs", record.run)
    assert again.state == "failed" and "its ranks give" in again.reason and "many items score alike" in again.reason


def test_missing_and_damaged_files_are_named(records, tmp_path):
    first, second = records({"SSD4Rec": {}})
    first.folder.ranks.unlink()
    with pytest.raises(ValueError, match="result.ranks.csv' is missing"):
        read_record(tmp_path / "runs", first.run)
    second.folder.result.write_text("{")
    with pytest.raises(ValueError, match="is damaged: delete its folder"):
        read_record(tmp_path / "runs", second.run)


def test_the_page_needs_no_other_file(records, report, tmp_path):
    write_report(records(MODELS), report)
    page = (tmp_path / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 5
    assert not re.search(r'(src|href)="(?!data:)', page)
    links = re.findall(r"\]\((.+?\.png)\)", (tmp_path / "report.md").read_text())
    assert len(links) == 5 and all((tmp_path / link).stat().st_size > 1500 for link in links)


def test_labels_are_escaped(records, report, tmp_path):
    (run, *_) = records({"SSD4Rec": {}}, seeds=1)
    run.run.__dict__["label"] = "a<b|c_d"
    report.latex = True
    write_report([run], report)
    page = (tmp_path / "report.html").read_text()
    assert "a&lt;b|c_d" in page and "a<b" not in page
    assert "a<b\\|c_d" in (tmp_path / "report.md").read_text()
    assert "a\\ensuremath{<}b|c\\_d" in (tmp_path / "table.tex").read_text()


def test_latex_holds_the_same_rows(records, report, tmp_path):
    report.latex = True
    write_report(records(MODELS), report)
    text = (tmp_path / "table.tex").read_text()
    markdown = (tmp_path / "report.md").read_text()
    value = re.search(r"GRU4Rec +\| +2 \| (\S+ ± \S+)", markdown)[1]
    assert re.search(rf"GRU4Rec & +2 & {re.escape(value)} &", text) and text.count("\\toprule") == 2


def test_without_matplotlib_all_but_the_pictures_is_made(records, report, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    write_report(records(MODELS), report)
    text = (tmp_path / "report.md").read_text()
    assert "pip install 'recbole-ssd[compare]'" in text and "| GRU4Rec" in text and "![" not in text
    assert not list(tmp_path.glob("*.png"))


def test_curves_draw_the_validations_of_the_results(records):
    models = summarize(records(MODELS), "ndcg@10")
    lines = plots.curves(models, "ndcg@10").axes[0].lines
    results = [record.result["valid_by_epoch"] for model in models for record in model.done]
    assert len(lines) == len(results) == 6
    for line, curve in zip(lines, results):
        assert line.get_xdata().tolist() == [entry["seconds"] for entry in curve]
        assert line.get_ydata().tolist() == [entry["result"]["ndcg@10"] for entry in curve]


def test_bars_are_as_long_as_the_means(records):
    models = summarize(records(MODELS, SASRec={"peak_gpu_mb": 7.0}), "ndcg@10")
    axes = plots.bars(models, "MB", plots._peak_mb).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [107.0, 107.0, 7.0]
    assert [text.get_text() for text in axes.get_yticklabels()] == list(MODELS)


def test_groups_draw_what_groups_csv_holds(records, report, tmp_path):
    done = records(MODELS)
    write_report(done, report)
    with open(tmp_path / "groups.csv") as file:
        rows = list(csv.DictReader(file))
    for column in ("history_length", "item_count"):
        axes = plots.groups(summarize(done, "ndcg@10"), column, "ndcg@10").axes[0]
        drawn = [y for container in axes.containers for y in container[0].get_ydata().tolist()]
        held = [float(row["mean"]) for row in rows if row["by"] == column]
        assert drawn == pytest.approx(held) and len(held) == 15


def test_groups_hold_every_target_once(records):
    models = summarize(records({"SSD4Rec": {}}), "ndcg@10")
    table = by_group(models, "history_length", "ndcg@10")
    assert table["targets"].tolist() == [8] * 5 and table["group"].tolist()[0] == "3–10"
    whole = statistics.fmean(models[0].test("ndcg@10"))
    assert (table["mean"] * table["targets"]).sum() / 40 == pytest.approx(whole)
    ranks = models[0].done[0].ranks
    chosen = ranks["rank"][ranks["history_length"].between(3, 10)]
    other = models[0].done[1].ranks
    second = other["rank"][other["history_length"].between(3, 10)]
    expected = [metric_values(part.to_numpy(), "ndcg@10").mean() for part in (chosen, second)]
    assert table["mean"][0] == pytest.approx(statistics.fmean(expected))


def test_groups_of_equal_values_are_not_torn(records):
    (record, *_) = records({"SSD4Rec": {}})
    record.ranks["history_length"] = 5
    table = by_group(summarize([record], "ndcg@10"), "history_length", "ndcg@10")
    assert table["group"].tolist() == ["5"] and table["targets"].tolist() == [40]


def test_csv_of_a_failed_run_keeps_its_reason(records, report, tmp_path):
    done = records({"SSD4Rec": {}})
    done[1].state, done[1].reason, done[1].result = "failed", 'a "quoted", reason', None
    write_report(done, report)
    rows = list(csv.DictReader(io.StringIO(Path(tmp_path / "results.csv").read_text())))
    assert rows[1]["reason"] == 'a "quoted", reason' and rows[1]["test ndcg@10"] == ""

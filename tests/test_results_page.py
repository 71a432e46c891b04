"""RESULTS.md is what its data files say."""

import json

import overview
import pytest
import results_page


def row(label, ndcg, epoch_s=1.0, difference=None, cut=0, curve=((5.0, 0.05), (9.0, 0.1))):
    found = difference and dict(zip(("mean", "low", "high", "p_holm"), difference, strict=True))
    return {
        **{
            "label": label,
            "name": f"{label} (cut)" if cut else label,
            "runs": 2,
            "seeds": [2020, 2021][: len(ndcg)],
            "cut": cut,
            "difference": found,
        },
        **{"test": {"hit@10": ndcg, "ndcg@10": ndcg}, "valid": [0.1] * len(ndcg), "epoch_s": epoch_s},
        **{
            "test_other_history": [2 * value for value in ndcg],
            "seconds_to_best": 9.0,
            "peak_gpu_mb": None,
            "peak_rss_mb": 1234.0,
            "curves": [list(curve)] * len(ndcg),
        },
    }


ROWS = [
    row("SASRec", [0.1, 0.2], epoch_s=6.0),
    row("better", [0.2, 0.3], difference=(0.1, 0.05, 0.15, 0.01), epoch_s=1.5, curve=((2.0, 0.2),)),
    row("worse", [0.05, 0.06], difference=(-0.1, -0.15, -0.05, 0.02), cut=2, curve=((2.0, 0.01),)),
    row("alike", [0.1, 0.21], difference=(0.0, -0.1, 0.1, 0.9), cut=1),
    {"label": "failing", "name": "failing", "runs": 2, "seeds": []},
]


@pytest.fixture
def folder(tmp_path):
    protocol = {"letter": "A", "time_order": "exact", "history": "kept"}
    table = {"protocol": protocol, "split_fingerprint": "0123456789ab", "users": 40, "targets": 41, "models": ROWS}
    summary = {
        "dataset": "tiny",
        "metric": "ndcg@10",
        "command": "the command",
        "jobs": 2,
        "commits": ["1234567", None],
        "tables": [table],
    }
    summary["machines"] = [{"cpu": "a processor", "gpu": None, "threads": 1}]
    summary["versions"] = [{"torch": "2", "recbole": "1.2.1"}]
    for name in ("losses", "models"):
        place = tmp_path / "tiny" / name
        place.mkdir(parents=True)
        (place / "summary.json").write_text(json.dumps(summary))
        (place / "curves.png").touch()
    return tmp_path


def test_the_page_is_made_from_its_data():
    assert results_page.PAGE.read_text(encoding="utf-8") == results_page.page(), "python benchmarks/results_page.py"


def test_the_page_holds_numbers_machine_and_commit(folder):
    page = results_page.page(folder)
    assert page.index("### models on tiny") < page.index("### losses on tiny")
    first = "0.1500 ± 0.0707 | 0.1500 ± 0.0707 | 0.3000 ± 0.1414"
    better = "0.2500 ± 0.0707 | 0.2500 ± 0.0707 | 0.5000 ± 0.1414"
    assert f"| SASRec | 2 | {first} | 0.1000 ± 0.0000 |  |  |  | 6.00 | 9 | 1,234 | 9 |" in page
    assert f"| better | 2 | {better} | 0.1000 ± 0.0000 | +0.1000 | +0.0500 to +0.1500 | 0.010 |" in page
    assert "| worse (cut) | 2 |" in page and "| alike (cut) | 2 |" in page and "| failing | none of 2 |" in page
    assert (
        "40 users, 41 test targets, split 0123456789ab, protocol A, time order exact. a processor, 1 thread(s)" in page
    )
    assert "seeds 2020, 2021. commit 1234567." in page
    assert "losses/report.md), 2 runs at a time, commit 1234567:\n\n```bash\nthe command\n```" in page
    assert "| losses         | [better 0.2500, worse (cut) -0.1950](#tiny-losses) |" in page
    assert "![validation over seconds](benchmarks/results/experiments/tiny/losses/curves.png)" in page


def test_sentences_say_what_the_intervals_say():
    lucky = row("lucky", [0.2, 0.3], difference=(0.1, 0.01, 0.15, 0.2))  # until p is corrected
    said = results_page.sentences({"models": [*ROWS, lucky, row("one", [0.2])]}, "ndcg@10")
    cost = "An epoch takes 1.00 s with worse (cut) and 6.00 s with SASRec, 6.0 times as long."
    assert said == (
        "In test ndcg@10, better beats SASRec; worse (cut) stays behind SASRec; alike (cut) and lucky cannot be told "
        f"from SASRec; one has one seed, too few to tell it from SASRec. {cost}"
    )
    assert results_page.sentences({"models": ROWS}, None) == cost


def test_a_first_row_without_a_result_is_told(folder):
    file = folder / "tiny" / "losses" / "summary.json"
    summary = json.loads(file.read_text())
    summary["tables"][0]["models"].insert(0, {"label": "first", "name": "first", "runs": 2, "seeds": []})
    file.write_text(json.dumps(summary))
    page = results_page.page(folder)
    assert "first, which the others are compared with, has no result. An epoch takes" in page


def test_time_to_quality_is_the_first_validation_that_is_as_good():
    found = overview.time_to_quality({"models": ROWS}, "SASRec")
    assert overview.time_to_quality({"models": ROWS}, "GRU4Rec") == {}
    assert found == {"SASRec": 9.0, "better": 2.0, "worse": None, "alike": 9.0}


def compared(*rows):
    return {"metric": "ndcg@10", "tables": [{"models": list(rows)}]}


def test_the_first_screen_tells_the_best_the_fastest_and_who_is_soon_as_good():
    one = row("MambaRec", [0.2], epoch_s=2.0)
    experiments = {
        "models": compared(
            row("SASRec", [0.1], epoch_s=9.0, cut=1),
            one,
            row("SSD4Rec", [0.15], epoch_s=1.5, curve=((3.0, 0.2),)),
            {"label": "RecMamba", "name": "RecMamba", "runs": 1, "seeds": []},
        ),
        "seeds": compared({**row("MambaRec", [0.2, 0.3], epoch_s=1.0), "test_other_history": None}),  # elsewhere
    }
    line = overview.best_and_fast({"tiny": experiments, "other": {"losses": compared(one)}}).splitlines()[-1]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        *("tiny", "SSD4Rec 0.1500 · 0.3000", "SASRec (cut) 0.1000 · 0.2000", "SSD4Rec 1.5", "SSD4Rec 3, SASRec 9")
    ]


def test_a_baseline_whose_seeds_differ_never_reaches_its_own_mean():
    slow = {**row("SASRec", [0.1, 0.2]), "curves": [[(5.0, 0.05)], [(9.0, 0.15)]]}
    experiments = {"models": compared(slow, row("SSD4Rec", [0.15, 0.15]))}
    assert "| SSD4Rec 9, SASRec never " in overview.best_and_fast({"tiny": experiments})


def test_a_choice_is_asked_of_each_model_and_called_level_within_the_seeds_noise():
    experiments = {
        "models": compared(row("SSD4Rec", [0.1, 0.2]), row("MambaRec", [0.1, 0.1])),
        "losses": compared(row("SSD4Rec CE", [0.3]), row("SSD4Rec BCE", [0.2]), row("GRU4Rec CE", [0.1], cut=1)),
        "mask_ratio": compared(*(row(f"mask {n}", [0.1 * n]) for n in (1.65, 1.0, 0.0))),
        "pair": compared(row("mask 1", [0.165]), row("mask 0", [0.0])),
        "gate": compared(row("token", [0.5]), row("running mean", [0.9]), {"label": "top1", "seeds": []}),
    }
    assert overview.seed_noise(experiments) == pytest.approx(0.05)
    assert overview.seed_noise({"losses": compared(row("SSD4Rec CE", [0.3]))}) is None
    lines = overview.choices({"a": experiments}).splitlines()
    *_, noise, gate, losses, masks, pair = (line.split("|")[2].strip() for line in lines)
    assert noise == "± 0.0500"
    assert gate == "[running mean 0.9000, token -0.4000](#a-gate)"
    assert losses == "[level: SSD4Rec CE 0.3000, SSD4Rec BCE -0.1000; GRU4Rec CE (cut) 0.1000](#a-losses)"
    assert masks.startswith("[level: mask 1.65") and pair.startswith("[mask 1")  # the more rows, the further apart

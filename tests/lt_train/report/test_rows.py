"""The table: its numbers, what shares a row, and what is remarked on."""

from lt_train.files import seal
from tests.helpers.finished_runs import (
    CONFUSION,
    Page,
    report,
    split_metrics,
    table_of,
    write_posthoc,
    write_run,
)


def cells(row: dict[str, str], *columns: str) -> list[str]:
    return [row[column] for column in columns]


def test_table_shows_the_test_split_with_error_and_columns_that_have_values(tmp_path, capsys):
    write_run(tmp_path / "scratch")
    later = "2026-01-02T04:00:00+00:00"
    write_run(tmp_path / "only_val", {"val": split_metrics(55.5, few_shot=None)}, finished=later)
    markdown, page = report(tmp_path)
    rows = table_of(markdown)
    assert rows["scratch"] == {
        "run": "scratch",
        "split": "test",
        "top-1": "70.0",
        "95 %": "± 14.2",  # 1.96 sqrt(0.7 * 0.3 / 40)
        "balanced": "70.0",
        "many": "85.0",
        "medium": "70.0",
        "few": "40.0",
        "ECE": "12.3",
        "error": "30.00",
        "seconds": "62",
    }
    assert cells(rows["only_val"], "split", "top-1", "few") == ["val", "55.5", "-"]
    said = capsys.readouterr().out
    assert "scratch" in said and "12.3" in said and str(tmp_path / "report.html") in said
    about = "Cross-entropy. 2 epochs, 200 steps of 8 on 690 images; 2 rank(s), cpu, bfloat16"
    for text in ("30.00", about):
        assert text in markdown and text in page


def test_seeds_are_mean_and_sample_standard_deviation(tmp_path):
    """70, 72 and 77 have mean 73 and deviation sqrt((9 + 1 + 16) / 2) = 3.606."""
    for seed, top1 in enumerate((70.0, 72.0, 77.0)):
        write_run(
            tmp_path / f"ce-seed{seed}",
            {"test": split_metrics(top1)},
            seed=seed,
            reference_error=29.5,
            seconds=100.0 * seed,
        )
    write_run(tmp_path / "other-seed0")
    markdown, _ = report(tmp_path)
    rows = table_of(markdown)
    assert set(rows) == {"ce", "other-seed0"}
    shown = cells(rows["ce"], "seeds", "top-1", "error", "diff.", "seconds")
    assert shown == ["3", "73.0 ± 3.6", "27.00 ± 3.61", "-2.50", "100"]
    assert rows["other-seed0"]["seeds"] == "-"
    assert table_of(markdown, "seed")["ce"]["seed"] == "0, 1, 2"


def test_seeds_of_a_pipeline_are_matched_stage_by_stage_and_other_settings_kept_apart(tmp_path):
    for seed, top1 in enumerate((60.0, 62.0)):
        pipeline = tmp_path / f"demo-seed{seed}"
        write_run(pipeline / "scratch", {"test": split_metrics(top1)}, seed=seed)
        crt = {"test": split_metrics(top1 + 10)}
        write_run(pipeline / "crt", crt, seed=seed, steps=100 + seed)
    markdown, _ = report(tmp_path / "demo-seed0", tmp_path / "demo-seed1")
    rows = table_of(markdown)
    assert rows["demo/scratch"]["top-1"] == "61.0 ± 1.4"
    # they had different numbers of steps
    assert rows["demo-seed0/crt"]["top-1"] == "70.0" and rows["demo-seed1/crt"]["top-1"] == "72.0"
    assert markdown.startswith("# demo\n")


def test_runs_with_one_seed_twice_are_told(tmp_path):
    for number in (0, 1):
        write_run(tmp_path / f"ce-seed{number}", seed=3)
    assert "do not differ in the seed (3, 3)" in report(tmp_path)[0]


def test_reference_and_difference_stand_beside_our_error_only_where_there_is_one(tmp_path):
    write_run(tmp_path / "with", reference_error=29.64)
    write_run(tmp_path / "without")
    write_run(tmp_path / "validated", {"val": split_metrics()}, reference_error=29.64)
    markdown, page = report(tmp_path)
    rows = table_of(markdown)
    assert cells(rows["with"], "error", "reference", "diff.") == ["30.00", "29.64", "+0.36"]
    assert cells(rows["without"], "reference", "diff.") == ["-", "-"]
    # validation error is not comparable
    assert cells(rows["validated"], "reference", "diff.") == ["29.64", "-"]
    assert "Beside the reference" in page and {"29.64", "30.00"} <= set(Page(page).texts)


def test_weights_selected_on_the_test_split_are_marked_and_explained_everywhere(tmp_path, capsys):
    for selected_on in ("test", "val", "last"):
        write_run(tmp_path / f"by_{selected_on}", selected_on=selected_on)
    markdown, page = report(tmp_path)
    remark = "weights were selected on the test split, as the reference does; not a fair estimate"
    for text in (markdown, page, capsys.readouterr().out):
        assert text.count(remark) == 1 and "by_test †" in text and "by_val †" not in text
    assert "**by_val**: weights were selected on the validation split" in markdown
    assert not [line for line in markdown.splitlines() if "by_last" in line and "selected" in line]


def test_rows_with_outside_data_are_marked_and_say_which(tmp_path, capsys):
    weights = "weights of timm/vit_base_patch16_224.augreg_in21k"
    for seed in (0, 1):
        write_run(tmp_path / f"light-seed{seed}", seed=seed, outside_data=[weights])
    write_run(tmp_path / "scratch", outside_data=[])
    write_run(tmp_path / "before")  # by an earlier version, which did not tell
    ncm = {"name": "NCM", "parameter": None, "metrics": {"test": split_metrics(72.0)}}
    write_posthoc(tmp_path / "light-seed0", "none", ncm)
    markdown, page = report(tmp_path)
    for text in (markdown, page, capsys.readouterr().out):
        assert text.count(f"outside data: {weights}") == 1
    assert {"light ‡", "light: NCM ‡", "scratch", "before"} == set(table_of(markdown))


def test_several_crops_are_a_row_where_they_were_of_the_run_s_end_and_data(tmp_path):
    cases = {
        "five": ({}, True),
        "one": ({"crops": 1}, False),
        "between": ({"step": 50}, False),
        "elsewhere": ({"data": "others"}, False),
    }
    for name, (changes, _) in cases.items():
        write_run(tmp_path / name, config={"data": {"root": "sets/own"}})
        metrics = {"val": split_metrics(1.0), "test": split_metrics(76.5)}
        content = {"crops": 5, "step": None, "data": "sets/own", "metrics": metrics, **changes}
        (tmp_path / name / "evaluation.json").write_bytes(seal(content))
    rows = table_of(report(tmp_path)[0])
    assert rows["five: 5 crops"]["top-1"] == "76.5"
    assert [name for name in rows if "crops" in name] == ["five: 5 crops"]


def test_posthoc_classifiers_are_rows_of_their_own(tmp_path):
    tau_norm = {
        "name": "tau-norm",
        "parameter": "tau 0.7",
        "metrics": {"val": split_metrics(1.0), "test": split_metrics(74.0)},
    }
    ncm = {"name": "NCM", "parameter": None, "metrics": {"test": split_metrics(72.0)}}
    cases = (("fair", "val", "last"), ("unfair", "test", "last"), ("tainted", "val", "test"))
    for name, selected_on, weights in cases:
        write_run(tmp_path / name, selected_on=weights, reference_error=20.0)
        write_posthoc(tmp_path / name, selected_on, tau_norm, ncm)
    markdown, _ = report(tmp_path)
    rows = table_of(markdown)
    assert rows["fair: tau-norm (tau 0.7)"]["top-1"] == "74.0"
    assert rows["fair: NCM"]["top-1"] == "72.0"
    assert (rows["fair"]["reference"], rows["fair: NCM"]["reference"]) == ("20.00", "-")
    said = "its parameter was selected on the"
    assert f"**fair: tau-norm (tau 0.7)**: {said} validation split" in markdown
    assert f"**† unfair: tau-norm (tau 0.7)**: {said} test split" in markdown
    # one without a parameter is as fair as the weights below it
    assert "unfair: NCM" in rows and "tainted: NCM †" in rows


def test_neighbours_with_class_balanced_votes_are_a_row_beside_the_plain_ones(tmp_path):
    for seed, top1 in enumerate((60.0, 64.0)):
        plain, balanced = split_metrics(50.0, "knn_", few_shot=0.0), split_metrics(top1, "knn_cb_")
        metrics = {"test": {**plain, **balanced}}
        write_run(tmp_path / f"moco-seed{seed}", metrics, headline="knn_top1", seed=seed)
    rows = table_of(report(tmp_path)[0])
    assert cells(rows["moco (k-NN)"], "top-1", "few") == ["50.0 ± 0.0", "0.0 ± 0.0"]
    balanced = rows["moco: k-NN, class-balanced votes"]
    assert cells(balanced, "top-1", "few", "seeds") == ["62.0 ± 2.8", "40.0 ± 0.0", "2"]


def test_a_run_that_had_nothing_to_evaluate_on_claims_no_kind_of_accuracy(tmp_path):
    write_run(tmp_path / "ce")
    write_run(tmp_path / "rotation", {}, headline="knn_top1", method="rotation")
    rows = table_of(report(tmp_path)[0])
    assert cells(rows["rotation"], "split", "top-1", "seconds") == ["-", "-", "62"]


def test_posthoc_classifiers_of_several_seeds_share_a_row_that_names_all_parameters(tmp_path):
    for seed, (tau, top1) in enumerate((("tau 0.6", 70.0), ("tau 0.8", 74.0))):
        write_run(tmp_path / f"ce-seed{seed}", seed=seed)
        metrics = {"test": split_metrics(top1)}
        tau_norm = {"name": "tau-norm", "parameter": tau, "metrics": metrics}
        write_posthoc(tmp_path / f"ce-seed{seed}", "val", tau_norm)
    assert table_of(report(tmp_path)[0])["ce: tau-norm (tau 0.6, tau 0.8)"]["top-1"] == "72.0 ± 2.8"


def test_how_far_accuracies_may_be_off(tmp_path):
    """One run by its test images, several by their seeds, and nothing where nobody knows."""
    for seed, top1 in enumerate((70.0, 77.0)):
        write_run(tmp_path / f"ce-seed{seed}", {"test": split_metrics(top1)}, seed=seed)
    write_run(tmp_path / "one")
    write_run(tmp_path / "unknown", {"test": split_metrics(confusion=None)})
    metrics = split_metrics(confusion=None, class_samples=[1000] * 4)
    write_run(tmp_path / "larger", {"test": metrics})
    found = table_of(report(tmp_path)[0], "over")
    assert set(found) == {"ce", "one", "larger"}
    assert cells(found["ce"], "over", "top-1") == ["2 seeds", "70.0 to 77.0"]
    assert cells(found["one"], "over") == ["40 images"]
    low, high = map(float, found["one"]["top-1"].split(" to "))
    assert 50 < low < 62 and 78 < high < 90
    low, high = map(float, found["larger"]["top-1"].split(" to "))
    assert 68 < low < 70 < high < 72


def test_a_difference_that_test_images_may_make_is_no_better_without_a_word(tmp_path):
    many = {"per_class": [95.0, 90.0, 80.0, 60.0], "class_samples": [500] * 4, "confusion": None}
    write_run(tmp_path / "a")
    write_run(
        tmp_path / "b",
        {
            "test": split_metrics(
                72.5, confusion=[*CONFUSION[:3], [0, 4, 1, 5]], per_class=[90.0, 80.0, 70.0, 50.0]
            )
        },
    )
    write_run(tmp_path / "c", {"test": split_metrics(81.25, **many)})
    chance = "which the choice of test images alone may make"
    lines = {line[:8]: line for line in report(tmp_path)[0].splitlines() if "points" in line}
    assert chance in lines["- **b** "] and "2.5 points better" in lines["- **b** "]
    (tmp_path / "x").mkdir()
    for name, top1, per_class in (("d", 60.0, [60.0] * 4), ("e", 70.0, [70.0] * 4)):
        metrics = split_metrics(top1, **{**many, "per_class": per_class})
        write_run(tmp_path / "x" / name, {"test": metrics})
    text = report(tmp_path / "x")[0]
    assert "10.0 points better" in text and chance not in text

"""`userec run` as a user meets it: what it leaves behind, and what a mistake is told, in one or two lines with exit code 2."""

import json
import os
import stat
import tomllib

import pandas as pd
import pytest
from typer.testing import CliRunner

from userec.cli.main import app

TOP = ["schema", "experiment", "dataset", "environment", "metrics", "baselines", "timing", "peak_rss_mb", "skipped"]
ROW = ["evaluator", "task", "split", "metric", "value", "low", "high", "n", "definition"]


def call(*words):
    return CliRunner().invoke(app, ["run", *map(str, words)])


@pytest.fixture
def plays(tmp_path):
    """A table of 40 users who walk round a circle of 12 songs."""
    rows = [(f"u{user}", f"s{(user + step) % 12}", 1_000 * step + user) for user in range(40) for step in range(8)]
    file = tmp_path / "plays.csv"
    pd.DataFrame(rows, columns=["uid", "iid", "ts"]).to_csv(file, index=False)
    return file


COLUMNS = ("--columns", "user=uid,item=iid,time=ts")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small run of a gradient model on a sample."""
    out = tmp_path_factory.mktemp("run") / "out"
    words = ("--model", "sasrec", "--dataset", "ttl@sample", "--set", "encoder.dim=8", "--set", "train.epochs=1", "--seed", "3")
    done = call(*words, "--out", out)
    assert done.exit_code == 0, done.output
    return out, done.output


def test_all_artefacts_are_written(finished):
    out, _ = finished
    names = {path.name for path in out.iterdir()}
    assert names == {"experiment.toml", "report.json", "per_user.parquet", "checkpoint", "tensorboard", "log.jsonl"}
    assert any(path.name.startswith("events.out") for path in (out / "tensorboard").iterdir())
    kinds = {path.suffix for path in (out / "checkpoint").rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json"}
    events = [json.loads(line)["event"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert (events[0], events[-1]) == ("started", "finished")


def test_the_report_has_the_promised_keys(finished):
    report = json.loads((finished[0] / "report.json").read_text())
    assert set(TOP) <= set(report)
    assert report["schema"] == 1
    assert report["experiment"]["seed"] == 3
    assert report["experiment"]["encoder"]["dim"] == 8
    assert report["experiment"]["encoder"]["layers"] == 2, "defaults included"
    assert report["experiment"]["objective"]["price"] == "softmax"
    assert report["experiment"]["evaluator"]["ranking"]["ks"] == [1, 5, 10, 20]
    assert {"name", "users", "items", "events", "target_hash"} <= set(report["dataset"])
    assert {"load_s", "train_s", "evaluate_s", "epochs", "targets_per_s"} == set(report["timing"])
    assert {"versions", "plugins", "kernels"} <= set(report["environment"])
    assert report["environment"]["kernels"]["linear_cross_entropy"]["provider"] == "cpu"
    assert all(list(row) == ROW for row in report["metrics"])
    assert all(list(row) == ["encoder", *ROW] for row in report["baselines"])
    assert {row["evaluator"] for row in report["metrics"]} == {"ranking", "classification", "reid", "click"}
    beside = {row["evaluator"]: set() for row in report["baselines"]}
    for row in report["baselines"]:
        beside[row["evaluator"]].add(row["encoder"])
    assert beside == {
        "ranking": {"popularity"},
        "classification": {"majority", "bag_of_items"},
        "reid": {"bag_of_items", "tf_idf"},
        "click": {"popularity"},
    }
    assert {row["split"] for row in report["metrics"]} == {"valid", "test"}
    for row in report["metrics"]:
        assert row["low"] is None or row["low"] <= row["value"] <= row["high"], row
    skipped = [(entry["evaluator"], entry["reason"]) for entry in report["skipped"]]
    assert ("ranking", "tasks click, like: 'sasrec' is trained on watch") in skipped
    assert any(name == "rating" for name, _ in skipped)
    assert any(name == "click" and reason.startswith("baseline 'category_seen'") for name, reason in skipped)


def test_a_sample_is_called_one_everywhere(finished):
    out, output = finished
    assert output.splitlines()[0].startswith("ttl@sample: the embedded generated sample")
    assert json.loads((out / "report.json").read_text())["dataset"]["name"] == "ttl@sample"
    assert tomllib.loads((out / "experiment.toml").read_text())["dataset"]["name"] == "ttl@sample"
    assert json.loads((out / "log.jsonl").read_text().splitlines()[0])["dataset"] == "ttl@sample"


def test_per_user_values_average_to_the_metric(finished):
    out, _ = finished
    table = pd.read_parquet(out / "per_user.parquet")
    for row in json.loads((out / "report.json").read_text())["metrics"]:
        mine = (table.encoder == "sasrec") & (table.split == row["split"]) & (table.metric == row["metric"])
        mine &= table.evaluator == row["evaluator"]
        if row["metric"] in ("ndcg@10", "mrr", "recall@20"):
            assert table[mine].value.mean() == pytest.approx(row["value"])
            assert table[mine].user.nunique() == row["n"]


def test_the_experiment_file_runs_again_to_the_same_numbers(finished, tmp_path):
    out, _ = finished
    done = call("--config", out / "experiment.toml", "--out", tmp_path / "again")
    assert done.exit_code == 0, done.output
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (out, tmp_path / "again"))
    assert first["metrics"] == second["metrics"]
    assert first["dataset"] == second["dataset"]


def test_resume_of_a_finished_run_changes_no_number(finished, tmp_path):
    out, _ = finished
    before = json.loads((out / "report.json").read_text())["metrics"]
    words = ("--model", "sasrec", "--dataset", "ttl@sample", "--set", "encoder.dim=8", "--set", "train.epochs=1", "--seed", "3")
    done = call(*words, "--out", out, "--resume")
    assert done.exit_code == 0, done.output
    assert json.loads((out / "report.json").read_text())["metrics"] == before
    other = call(*words[:-1], "4", "--out", out, "--resume")
    assert other.exit_code == 2
    assert "seed" in other.stderr


def test_json_goes_to_stdout_alone(plays, tmp_path):
    done = call("--model", "popularity", "--dataset", plays, *COLUMNS, "--split", "leave_last", "--out", tmp_path / "o", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["dataset"]["name"] == "plays"


def test_leaky_and_counted_things_are_told_and_kept(plays, tmp_path):
    table = pd.read_csv(plays)
    table["ts"] += 5_000 * table["uid"].str[1:].astype(int)  # users come one after the other
    extra = pd.DataFrame([("lonely", "s1", 5)], columns=table.columns)
    pd.concat([table, table.head(3), extra]).to_csv(plays, index=False)
    done = call("--model", "popularity", "--dataset", plays, *COLUMNS, "--split", "leave_last", "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert report["dataset"]["split"]["leaky"] is True
    assert report["dataset"]["events"] == 40 * 8 + 3 + 1
    notes = " ".join(report["notes"])
    assert "3 duplicated" in notes
    assert "1 user" in notes


@pytest.mark.parametrize("task", ["click", "age"])
@pytest.mark.parametrize("model", ["popularity", "sasrec"])
def test_a_table_of_labels_is_trained_on_and_judged_by_what_it_asks(model, task, tmp_path):
    words = ("--set", "encoder.dim=8", "--set", "train.epochs=1") if model == "sasrec" else ()
    done = call("--model", model, "--dataset", "ttl@sample", "--task", task, *words, "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    judged = {(row["evaluator"], row["task"]) for row in report["metrics"] if row["evaluator"] != "reid"}
    probed = {"age", "gender", "life_status"} if model == "sasrec" else {task} & {"age"}
    expected = {("classification", label) for label in probed}
    assert judged == expected | ({("ranking", "click"), ("click", "click")} if task == "click" else set())
    heads = {row["task"]: row["definition"].partition("head=")[2][:3] for row in report["metrics"] if row["task"] in probed}
    assert heads == {label: "own" if label == task else "pro" for label in probed}
    if task == "age":
        assert any(entry["evaluator"] == "ranking" for entry in report["skipped"])
        return
    assert all("seen=kept" in row["definition"] for row in report["metrics"] if row["evaluator"] == "ranking")
    assert max(row["value"] for row in report["metrics"] if row["metric"] == "recall@20") > 20 / 236, "no better than chance"


def test_a_misspelt_choice_of_kernels_is_told_before_the_data_is_read(monkeypatch, tmp_path):
    monkeypatch.setenv("USEREC_KERNELS", "tosch")
    monkeypatch.setattr("userec.engine.run.cache.load", lambda *_: pytest.fail("the data were read"))
    done = call("--model", "markov", "--dataset", "ttl@sample", "--out", tmp_path / "o")
    assert done.exit_code == 2, done.output
    assert "unknown kernel provider 'tosch' in USEREC_KERNELS; did you mean 'torch'?" in done.stderr


BAD = {
    "model": (["--model", "sasrce", "--dataset", "ttl@sample"], "unknown model 'sasrce'; did you mean 'sasrec'?"),
    "data set": (["--model", "sasrec", "--dataset", "tll"], "unknown data set 'tll'; did you mean 'ttl'?"),
    "evaluator": (["--model", "popularity", "--dataset", "ttl@sample", "--evaluator", "rankng"], "did you mean 'ranking'?"),
    "objective": (["--model", "sasrec", "--dataset", "ttl@sample", "--objective", "next_itm"], "did you mean 'next_item'?"),
    "section": (["--model", "sasrec", "--dataset", "ttl@sample", "--set", "trian.lr=1"], "did you mean 'train'?"),
    "key": (
        ["--model", "sasrec", "--dataset", "ttl@sample", "--set", "encoder.dmi=8"],
        "unknown setting 'encoder.dmi'; did you mean 'dim'?",
    ),
    "type": (
        ["--model", "sasrec", "--dataset", "ttl@sample", "--set", "encoder.dim=wide"],
        "setting 'encoder.dim': input should be a valid integer",
    ),
    "task": (["--model", "sasrec", "--dataset", "ttl@sample", "--task", "wach"], "did you mean 'watch'?"),
    "no model": (["--dataset", "ttl@sample"], "--model NAME"),
    "no data set": (["--model", "sasrec"], "--dataset NAME"),
    "device": (["--model", "sasrec", "--dataset", "ttl@sample", "--device", "gpu"], "cpu, cuda or cuda:N"),
    "config": (["--config", "/nowhere.toml"], "cannot read /nowhere.toml"),
    "set": (["--model", "sasrec", "--dataset", "ttl@sample", "--set", "encoder.dim"], "KEY=VALUE"),
    "no file": (["--model", "markov", "--dataset", "./nowhere.csv", *COLUMNS], "nowhere.csv"),
    "columns of a named set": (["--model", "markov", "--dataset", "ttl@sample", *COLUMNS], "--columns is for a file of your own"),
    "resume without out": (["--model", "markov", "--dataset", "ttl@sample", "--resume"], "--resume needs --out"),
    "an objective for one that counts": (
        ["--model", "markov", "--dataset", "ttl@sample", "--objective", "next_item"],
        "leave --objective out",
    ),
    "a task of labels for one that counts events": (
        ["--model", "markov", "--dataset", "ttl@sample", "--task", "click"],
        "predicts the next item only, not task 'click'",
    ),
    "labels of the events": (
        ["--model", "sasrec", "--dataset", "ttl@sample", "--objective", "labelled"],
        "task 'watch' is the events themselves: use --objective next_item",
    ),
    "events of labels": (
        ["--model", "sasrec", "--dataset", "ttl@sample", "--task", "click", "--objective", "next_item"],
        "task 'click' has labels: use --objective labelled",
    ),
    "seed": (["--model", "markov", "--dataset", "ttl@sample", "--seed", "-1"], "setting 'seed'"),
    "evaluator's key": (
        ["--model", "markov", "--dataset", "ttl@sample", "--set", "evaluator.ranking.kss=[1]"],
        "did you mean 'ks'?",
    ),
    "monitor": (
        ["--model", "sasrec", "--dataset", "ttl@sample", "--set", "train.monitor=ranking/ndgc@10"],
        "did you mean 'ndcg@10'?",
    ),
    "no folder": (["--model", "markov", "--dataset", "ttl", "--data-dir", "/nowhere"], "/nowhere"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_mistake_is_told_with_the_way_out(what, tmp_path):
    words, message = BAD[what]
    done = call(*words, *(() if "--resume" in words else ("--out", tmp_path / "out")))
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3, done.stderr
    assert "Traceback" not in done.output
    assert what == "monitor" or not (tmp_path / "out").exists(), "nothing is left behind"


def test_every_reason_of_a_misfit_and_what_would_fit(tmp_path):
    done = call(
        "--model",
        "twin",
        "--dataset",
        "ttl@sample",
        "--objective",
        "next_item",
        "--set",
        "objective.negatives=none",
        "--set",
        "objective.price=softmax",
        "--out",
        tmp_path / "o",
    )
    assert done.exit_code == 2
    assert "needs SCORE_CATALOG" in done.stderr
    assert "userec-lifelong" in done.stderr
    assert "would fit: " in done.stderr
    assert "next_item(negatives=" in done.stderr


def test_a_folder_without_the_data_set_names_the_file_it_lacks(tmp_path):
    done = call("--model", "markov", "--dataset", "movielens-1m", "--data-dir", tmp_path, "--out", tmp_path / "o")
    assert done.exit_code == 2
    assert "ml-1m.zip" in done.stderr


def test_an_archive_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "ml-1m.zip").write_bytes(b"not a zip")
    done = call("--model", "markov", "--dataset", "movielens-1m", "--data-dir", tmp_path, "--out", tmp_path / "o")
    assert done.exit_code == 2
    assert "ml-1m.zip" in done.stderr


def test_a_bad_table_names_column_row_and_way_out(plays, tmp_path):
    out = ("--out", tmp_path / "o")
    done = call("--model", "markov", "--dataset", plays, "--columns", "user=uid,item=iidd,time=ts", *out)
    assert (done.exit_code, "did you mean 'iid'?" in done.stderr) == (2, True)
    table = pd.read_csv(plays, dtype=str)
    table.loc[4, "ts"] = "yesterday"
    table.to_csv(plays, index=False)
    done = call("--model", "markov", "--dataset", plays, *COLUMNS, *out)
    assert done.exit_code == 2
    assert "yesterday" in done.stderr
    assert "row" in done.stderr or "line" in done.stderr
    plays.write_text("uid,iid,ts\n")
    done = call("--model", "markov", "--dataset", plays, *COLUMNS, *out)
    assert (done.exit_code, "has no row" in done.stderr) == (2, True)


def test_a_full_folder_is_not_written_to(plays, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    done = call("--model", "popularity", "--dataset", plays, *COLUMNS, "--out", tmp_path / "full")
    assert done.exit_code == 2
    assert "--resume" in done.stderr
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    done = call("--model", "popularity", "--dataset", plays, *COLUMNS, "--out", tmp_path / "full", "--resume")
    assert (done.exit_code, "holds no run" in done.stderr) == (2, True)


def test_a_folder_that_cannot_be_written_is_told(plays, tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    done = call("--model", "popularity", "--dataset", plays, *COLUMNS, "--out", tmp_path / "file" / "out")
    assert (done.exit_code, "--out" in done.stderr) == (2, True)
    if os.getuid() != 0:
        (tmp_path / "locked").mkdir()
        (tmp_path / "locked").chmod(stat.S_IRUSR | stat.S_IXUSR)
        done = call("--model", "popularity", "--dataset", plays, *COLUMNS, "--out", tmp_path / "locked" / "out")
        assert (done.exit_code, "--out" in done.stderr) == (2, True)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    words = ("--model", "sasrec", "--dataset", "ttl@sample", "--set", "train.optimizer=sgd", "--set", "train.lr=1e30")
    done = call(*words, "--set", "encoder.dim=8", "--out", tmp_path / "o")
    assert done.exit_code == 2
    assert "lower train.lr" in done.stderr


def test_the_evaluator_that_validation_goes_by_keeps_its_settings(plays, tmp_path):
    words = ("--dataset", plays, *COLUMNS, "--split", "leave_last", "--evaluator", "click", "--set", "evaluator.ranking.ks=[3]")
    small = ("--model", "sasrec", "--set", "encoder.dim=8", "--set", "train.epochs=1", "--set", "train.monitor=ranking/ndcg@3")
    done = call(*small, *words, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["experiment"]["evaluator"]["ranking"]["ks"] == [3]
    assert {row["evaluator"] for row in report["metrics"]} == {"click"}
    assert report["best"]["monitor"] == "ranking/ndcg@3"
    assert report["best"]["value"] > 0

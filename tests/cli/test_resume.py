"""A run survives what happens to runs: SIGKILL, Ctrl-C, SIGTERM, numbers that run away, plugins that are gone or changed."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from userec.cli.interrupt import Interrupts
from userec.cli.main import app
from userec.engine import checkpoint
from userec.engine.trainer import Trainer

PATIENCE = 300.0
"""Seconds until a test gives a run up; nothing is timed."""

SMALL = {"encoder.dim": "8", "encoder.layers": "1", "encoder.window": "20", "batch.rows": "16", "train.checkpoint_seconds": "0"}


def words_of(dataset="movielens-100k@sample", **more):
    said = {**SMALL, "train.monitor": "ranking/ndcg@10", "evaluator.ranking.ks": "[10]", **more}
    settings = [word for key, value in said.items() for word in ("--set", f"{key}={value}")]
    return ["--model", "sasrec", "--dataset", str(dataset), "--evaluator", "ranking", "--seed", "5", *settings]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums of several threads may be rounded otherwise: weights are compared to the last bit, so all is computed by one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


BRAKE = """
import signal
import time

signal.signal(signal.SIGINT, signal.default_int_handler)  # as a terminal gives them, whatever started these tests
signal.signal(signal.SIGTERM, signal.SIG_DFL)

from userec.cli.main import main
from userec.engine.trainer import Trainer

step = Trainer._step

def braked(self, batches):
    if self.progress.step >= 100:
        time.sleep(600)
    return step(self, batches)

Trainer._step = braked
main()
"""
"""`userec`, which stands still at step 100: a run that is too fast for its killer waits for him there."""


@contextmanager
def begin(*words, cwd):
    """A run in a process of its own, which does not outlive the block."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BRAKE, "run", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=cwd, env=env, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()  # nothing where it has ended


def end(process):
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def call(*words):
    return CliRunner().invoke(app, ["run", *map(str, words)])


def wait_for(process, what):
    """Poll until `what()` is true. Fails where the run ended before."""
    limit = time.monotonic() + PATIENCE
    while not what():
        assert process.poll() is None, f"the run ended first:\n{process.communicate()}"
        assert time.monotonic() < limit
        time.sleep(0.005)


def standing(out):
    """(step, batches of the epoch taken, done) of the checkpoint, zeros before the first."""
    file = out / "checkpoint" / "last.json"
    if not file.is_file():
        return 0, 0, False
    about = json.loads(file.read_text())
    return about["step"], about["progress"]["position"], about["progress"]["done"]


def report_of(out):
    return json.loads((out / "report.json").read_text())


def best_of(out):
    about = json.loads((out / "checkpoint" / "best.json").read_text())
    return load_file(out / "checkpoint" / about["tensors"])


def same_end(a, b):
    first, second = best_of(a), best_of(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    one, other = report_of(a), report_of(b)
    assert one["metrics"] == other["metrics"]
    assert one["baselines"] == other["baselines"]
    assert one["best"] == other["best"]
    assert one["timing"]["epochs"] == other["timing"]["epochs"]


EPOCHS = words_of(**{"train.epochs": "2"})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = call(*EPOCHS, "--set", "train.checkpoint_seconds=300", "--out", out)
    assert done.exit_code == 0, done.output
    assert report_of(out)["timing"]["epochs"] == 2
    assert standing(out)[0] > 100, "past the brake"
    return out


def test_a_run_killed_in_mid_epoch_ends_as_if_nothing_had_been(whole, tmp_path):
    out = tmp_path / "out"
    with begin(*EPOCHS, "--out", out, cwd=tmp_path) as process:
        wait_for(process, lambda: standing(out)[0] > 70 and standing(out)[1] > 0)
        process.send_signal(signal.SIGKILL)
        assert end(process)[0] == -signal.SIGKILL
    assert not (out / "report.json").exists()
    step, position, done = standing(out)
    assert (step > 70, done) == (True, False), (step, position)
    done = call(*EPOCHS, "--set", "train.checkpoint_seconds=7", "--out", out, "--resume")
    assert done.exit_code == 0, done.output
    same_end(whole, out)
    steps = [json.loads(line).get("step", 0) for line in (out / "log.jsonl").read_text().splitlines()]
    resumed = steps[len(steps) - steps[::-1].index(0, 1) :]
    assert all(later > step for later in resumed if later), "it goes on, it does not start anew"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_is_kept_and_says_how_to_go_on(number, code, whole, tmp_path, monkeypatch):
    out = tmp_path / "an out"
    with begin(*EPOCHS, "--out", out.name, cwd=tmp_path) as process:
        wait_for(process, lambda: standing(out)[0] > 10)
        process.send_signal(number)
        returncode, _, err = end(process)
    assert returncode == code, err
    assert "Traceback" not in err
    step, _, done = standing(out)
    assert not done
    line = err.strip().splitlines()[-1]
    start, _, command = line.partition("; the checkpoint is kept: go on with ")
    total = json.loads((out / "checkpoint" / "last.json").read_text())["total"]
    assert start == f"userec: interrupted at step {step} of {total}"
    assert command == "userec run --config 'an out/experiment.toml' --out 'an out' --resume"
    monkeypatch.chdir(tmp_path)
    again = CliRunner().invoke(app, [*shlex.split(command)[1:], "--set", "train.checkpoint_seconds=300"])
    assert again.exit_code == 0, again.output
    same_end(whole, out)


def test_the_command_to_go_on_has_the_folder_of_the_data_and_what_was_blocked(tmp_path):
    from userec.cli.interrupt import farewell

    assert farewell(tmp_path, None, ()) == "interrupted"
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "last.json").write_text(json.dumps({"step": 4, "total": 9, "progress": {"done": False}}))
    line = farewell(tmp_path, Path("my data"), ("click",))
    end = f"userec -p no:click run --config {tmp_path}/experiment.toml --out {tmp_path} --data-dir 'my data' --resume"
    assert line == f"interrupted at step 4 of 9; the checkpoint is kept: go on with {end}"


PLUGIN = '''
import os, signal
import torch
from userec.capability import Can
from userec.config import Config
from userec.evaluator.contract import Evaluator, Metric
from userec.markers import hookimpl
from userec.builtin.next_item import NextItem


class Interrupting(Evaluator):
    """Ctrl-C while it judges, as long as the file `once` stands; a second one at once where it says so."""

    name = "interrupting"
    judges = frozenset({"item"})

    def evaluate(self, encoder, data, split):
        if os.path.exists("once") and split == "test":
            os.remove("once")
            os.kill(os.getpid(), signal.SIGINT)
        yield Metric("next", "one", "one", 1.0, n=1)


class Odd(NextItem):
    """Next item, until step `at`, from which the loss is `value`; or Ctrl-C twice inside that step."""

    name = "odd"

    class Config(NextItem.Config):
        at: int = 5
        value: float = float("nan")
        twice: bool = False

    def __init__(self, config, build):
        super().__init__(config, build)
        self.steps = torch.nn.Buffer(torch.zeros((), dtype=torch.int64))

    def loss(self, encoder, batch):
        import dataclasses

        self.steps += 1
        found = super().loss(encoder, batch)
        if self.steps < self.config.at:
            return found
        if self.config.twice:
            os.kill(os.getpid(), signal.SIGINT)
            print("after the first", flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            print("after the second", flush=True)
        return dataclasses.replace(found, loss=found.loss * self.config.value)


@hookimpl
def userec_evaluators():
    return [Interrupting]


@hookimpl
def userec_objectives():
    return [Odd]
'''


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A plugin that interrupts, and one whose loss is no number from a step on."""
    site = tmp_path / "site"
    info = site / "userec_odd-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "userec_odd.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: userec-odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[userec1]\nodd = userec_odd\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as a terminal gives it, whatever started these tests
    yield site
    signal.signal(signal.SIGINT, before)
    sys.modules.pop("userec_odd", None)


def test_an_interrupt_in_evaluation_loses_nothing(planted, tmp_path):
    out = tmp_path / "out"
    Path("once").touch()
    words = [*words_of(**{"train.steps": "6"}), "--evaluator", "interrupting"]
    done = call(*words, "--out", out)
    assert done.exit_code == 130, done.output
    line = f"interrupted in evaluation, after step 6 of 6; the checkpoint is kept: go on with userec run --config {out}"
    assert line in done.stderr
    assert "Traceback" not in done.stderr
    before = best_of(out)
    done = call(*words, "--out", out, "--resume")
    assert done.exit_code == 0, done.output
    assert "step 6/6" not in done.output, "it only evaluates"
    assert all(torch.equal(before[key], value) for key, value in best_of(out).items())
    assert {row["evaluator"] for row in report_of(out)["metrics"]} == {"ranking", "interrupting"}


def test_a_second_interrupt_ends_the_step_at_once(planted, tmp_path):
    out = tmp_path / "out"
    words = [*words_of(**{"train.steps": "9"}), "--objective", "odd", "--set", "objective.twice=true"]
    done = call(*words, "--out", out)
    assert done.exit_code == 130, done.output
    assert "after the first" in done.output
    assert "after the second" not in done.output
    assert "interrupted at step 4 of 9" in done.stderr
    assert standing(out)[0] == 4, "the step that was broken off is not kept"


def test_signals_are_given_back_and_left_alone_where_they_were_ignored(monkeypatch):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        handler = signal.getsignal(signal.SIGINT)
        with Interrupts():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    found = []
    thread = threading.Thread(target=lambda: found.append(Interrupts().__enter__().before))
    thread.start()
    thread.join()
    assert found == [{}], "another thread than the main one may not set handlers"


def test_an_interrupt_waits_for_the_outermost_shield():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    reached = []
    interrupts = Interrupts()
    try:
        with pytest.raises(KeyboardInterrupt), interrupts:  # noqa: PT012 - the order is the test
            with interrupts.shield():
                with interrupts.shield():
                    signal.raise_signal(signal.SIGINT)
                reached.append("inner")
            reached.append("outer")
        with interrupts.shield():
            reached.append("saved")
    finally:
        signal.signal(signal.SIGINT, before)
    assert reached == ["inner", "saved"], "it comes once: what is saved then is saved whole"
    assert interrupts.code == 130


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(value, planted, tmp_path):
    out = tmp_path / "out"
    words = [*words_of(**{"train.steps": "9"}), "--objective", "odd", "--set", f"objective.value={value}"]
    done = call(*words, "--out", out)
    assert done.exit_code == 2, done.output
    said = [
        f"the loss is {value} at step 5, epoch 1, task 'next': lower train.lr (0.002) or set train.clip_norm, and start anew",
        f"the last good checkpoint stands in {out / 'checkpoint'} (step 4)",
    ]
    assert all(line in done.stderr for line in said), done.stderr
    assert "Traceback" not in done.stderr
    tensors, about = checkpoint.load(out / "checkpoint", "last")
    assert about["step"] == 4
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    again = call(*words, "--out", out, "--resume")
    assert again.exit_code == 2
    assert all(line in again.stderr for line in said), "the same steps end the same way"


def test_weights_that_run_away_are_neither_kept_nor_judged(tmp_path):
    words = words_of(**{"train.optimizer": "sgd", "train.lr": "1e38", "train.steps": "9", "train.validate_steps": "2"})
    done = call(*words, "--out", tmp_path / "o")
    assert done.exit_code == 2, done.output
    assert "lower train.lr (1e+38)" in done.stderr
    for name in ("best", "last"):
        found = checkpoint.load(tmp_path / "o" / "checkpoint", name)
        assert found is None or all(torch.isfinite(tensor).all() for tensor in found[0].values())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run, and the words that it was started with."""
    out = tmp_path_factory.mktemp("finished") / "out"
    words = words_of(**{"train.steps": "4"})
    done = call(*words, "--out", out)
    assert done.exit_code == 0, done.output
    return out, words


@pytest.fixture
def made(finished, tmp_path):
    """A copy of the small run, and a way to rewrite who made its encoder."""
    whole, words = finished
    out = Path(shutil.copytree(whole, tmp_path / "made"))
    file = out / "checkpoint" / "made_by.json"
    by = json.loads(file.read_text())

    def rewrite(**values):
        file.write_text(json.dumps({**by, "encoder": {**by["encoder"], **values}}))

    return out, words, by, rewrite


def test_a_checkpoint_knows_who_made_it(made):
    out, _, by, _ = made
    assert {word: (entry["name"], entry["distribution"]) for word, entry in by.items()} == {
        "encoder": ("sasrec", "userec-transformer"),
        "objective": ("next_item", "userec"),
        "dataset": ("movielens-100k@sample", "userec-datasets"),
    }
    for name in ("best", "last"):
        assert json.loads((out / "checkpoint" / f"{name}.json").read_text())["made_by"] == by


def test_a_plugin_that_is_gone_or_older_is_told_with_the_way_out(made, tmp_path):
    out, words, by, rewrite = made
    now = by["encoder"]["version"]
    other = {"name": "gone", "distribution": "userec-gone", "version": "0.1.0"}
    gone = "is from userec-gone 0.1.0, which is not installed: pip install userec-gone"
    older = f"was made with userec-transformer 99.0, installed is {now}: pip install -U 'userec-transformer>=99.0'"
    told = {f"encoder 'gone' of {out} {gone}": other, f"encoder 'sasrec' of {out} {older}": {"version": "99.0"}}
    for line, values in told.items():
        rewrite(**values)
        done = call(*words, "--out", out, "--resume")
        assert done.exit_code == 2, done.output
        assert done.stderr.strip() == f"userec: {line}"
    done = call("--config", out / "experiment.toml", "--out", tmp_path / "another")
    assert done.exit_code == 2
    assert "was made with userec-transformer 99.0" in done.stderr
    done = call("--config", out / "experiment.toml", "--model", "popularity", "--out", tmp_path / "another")
    assert "was made with" not in done.stderr, "only what is asked for again"


def test_a_newer_plugin_goes_on_and_says_so(made):
    out, words, by, rewrite = made
    rewrite(version="0.0.1")
    done = call(*words, "--out", out, "--resume")
    assert done.exit_code == 0, done.output
    told = f"encoder 'sasrec' of {out} was made with userec-transformer 0.0.1, installed is {by['encoder']['version']}"
    assert [line for line in done.output.splitlines() if "was made with" in line] == [told]


def test_a_blocked_plugin_is_told(made):
    out, words, *_ = made
    done = CliRunner().invoke(app, ["-p", "no:transformer", "run", *words, "--out", str(out), "--resume"])
    assert done.exit_code == 2
    assert f"encoder 'sasrec' of {out} is from userec-transformer" in done.stderr
    assert "which is not loaded: blocked by -p no:" in done.stderr


def test_a_damaged_note_of_the_makers_is_told(made):
    out, words, *_ = made
    (out / "checkpoint" / "made_by.json").write_text("{")
    done = call(*words, "--out", out, "--resume")
    assert (done.exit_code, "made_by.json cannot be read" in done.stderr) == (2, True)


def cut(*words):
    """A run in this process that Ctrl-C ends after step 4."""
    step = Trainer._step

    def interrupted(self, batches):
        if self.progress.step == 4:
            raise KeyboardInterrupt
        return step(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        done = call(*words)
    assert done.exit_code == 130, done.output


def plays(swapped=False):
    """A csv of 40 users who walk round a circle of 12 songs; `swapped`: one of them begins with the second."""
    rows = [[user, (user + step) % 12, 1_000 * step + user] for user in range(40) for step in range(8)]
    if swapped:
        rows[0][1], rows[1][1] = rows[1][1], rows[0][1]
    return "\n".join(["user,item,time", *(",".join(map(str, row)) for row in rows)])


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    """Other data of the same size, with the same questions: it would fit, and the report would say nothing."""
    file, out = tmp_path / "plays.csv", tmp_path / "out"
    words = [*words_of(file, **{"train.steps": "9"}), "--split", "leave_last", "--out", out]
    file.write_text(plays())
    cut(*words)
    file.write_text(plays(swapped=True))
    refused = call(*words, "--resume")
    assert refused.exit_code == 2, refused.output
    assert f"--resume: the run in {out} was trained on other data (" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert standing(out)[0] == 4, "what was trained stays"
    file.write_text(plays())
    done = call(*words, "--resume")
    assert done.exit_code == 0, done.output
    assert standing(out)[::2] == (9, True)


def test_until_training_has_ended_settings_of_evaluators_stay(tmp_path):
    """Validation goes by them. What is judged beside them, and by whom, may change at any time."""
    words = [*words_of(**{"train.steps": "9"}), "--out", tmp_path / "out"]
    other = ["--set", "evaluator.ranking.ks=[5, 10]"]
    cut(*words)
    refused = call(*words, *other, "--resume")
    assert refused.exit_code == 2, refused.output
    assert "was made with other settings (evaluator); use another --out" in refused.stderr
    more = [*words, "--evaluator", "click", "--slice", "activity"]
    done = call(*more, "--resume")
    assert done.exit_code == 0, done.output
    rows = report_of(tmp_path / "out")["metrics"]
    assert {row["evaluator"] for row in rows} == {"ranking", "click"}
    assert any(row.get("slice", "").startswith("activity=") for row in rows)
    done = call(*more, *other, "--resume")
    assert done.exit_code == 0, done.output
    assert "ndcg@5" in {row["metric"] for row in report_of(tmp_path / "out")["metrics"]}

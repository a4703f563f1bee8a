"""Settings: merging, `--set`, TOML there and back, and what a mistake is told."""

import tomllib

import pytest

from userec.config import parse
from userec.engine.experiment import Experiment, TrainConfig, merge, read_file, read_settings, resolve, to_toml
from userec.errors import UserError
from userec.schema import NEXT

SAID = {"dataset": {"name": "toy"}, "encoder": {"name": "m"}}


def test_what_is_said_stands_over_the_recipe_over_the_defaults():
    recipe = {"objective": {"item": {"name": "next_item", "price": "bce"}}, "train": {"lr": 0.5, "epochs": 3}}
    experiment = resolve({**SAID, "train": {"epochs": 7}}, recipe, NEXT)
    assert (experiment.train.lr, experiment.train.epochs, experiment.train.accumulate) == (0.5, 7, 1)
    assert experiment.objective.settings == {"price": "bce"}


def test_another_objective_takes_none_of_the_recipes_settings():
    recipe = {"objective": {"item": {"name": "next_item", "price": "bce"}}}
    assert resolve({**SAID, "objective": {"name": "labelled"}}, recipe, NEXT).objective.settings == {}
    kept = resolve({**SAID, "objective": {"negatives": 3}}, recipe, NEXT).objective
    assert (kept.name, kept.settings) == ("next_item", {"price": "bce", "negatives": 3})


def test_a_setting_without_a_name_belongs_to_the_one_that_is_named():
    assert merge({"encoder": {"name": "sasrec"}}, {"encoder": {"dim": 8}}) == {"encoder": {"name": "sasrec", "dim": 8}}
    assert merge({"encoder": {"dim": 8}}, {"encoder": {"name": "sasrec"}}) == {"encoder": {"name": "sasrec", "dim": 8}}


def test_merge_does_not_change_what_it_merges():
    under, over = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(under, over) == {"a": {"b": 1, "c": 2}}
    assert under == {"a": {"b": 1}}
    assert over == {"a": {"c": 2}}


def test_settings_are_toml_values_where_they_parse():
    values = read_settings(
        ["encoder.dim=64", "train.betas=[0.9, 0.98]", "split.name=by_user", "train.patience=none", "encoder=sasrec"]
    )
    assert values == {
        "encoder": {"dim": 64, "name": "sasrec"},
        "train": {"betas": [0.9, 0.98], "patience": None},
        "split": {"name": "by_user"},
    }


@pytest.mark.parametrize("setting", ["encoder.dim", "=3", "encoder..dim=3"])
def test_a_setting_without_key_and_value_is_refused(setting):
    with pytest.raises(UserError, match="KEY=VALUE"):
        read_settings([setting])


def test_an_experiment_is_the_same_after_toml():
    experiment = resolve({**SAID, "train": {"patience": None, "steps": 5}, "evaluators": ["ranking"]}, {}, NEXT)
    text = to_toml(experiment)
    assert tomllib.loads(text)["train"]["patience"] == "none"
    path_values = resolve(_read(text), {"train": {"patience": 3}}, NEXT)
    assert path_values == experiment


def _read(text):
    import pathlib
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "e.toml"
        file.write_text(text)
        return read_file(file)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"trian": {}}, "unknown section 'trian'; did you mean 'train'?"),
        ({"train": {"ephocs": 3}}, "unknown setting 'train.ephocs'; did you mean 'epochs'?"),
        ({"train": {"epochs": "many"}}, "setting 'train.epochs': input should be a valid integer.*got 'many'"),
        ({"train": {"lr": -1}}, "setting 'train.lr': input should be greater than 0, got -1"),
        ({"split": {"name": "by_tiem"}}, "setting 'split.name'.*'by_time'"),
    ],
)
def test_a_mistake_names_the_key_and_the_way_out(said, message):
    with pytest.raises(UserError, match=message):
        resolve({**SAID, **said}, {}, NEXT)


def test_every_mistake_is_told_at_once():
    with pytest.raises(UserError) as caught:
        resolve({**SAID, "train": {"ephocs": 3, "lr": "x"}, "batch": {"row": 3}}, {}, NEXT)
    assert len(str(caught.value).splitlines()) == 3


def test_defaults_make_an_experiment():
    assert isinstance(resolve(SAID, {}, NEXT), Experiment)


def test_half_precision_is_refused_with_the_reason_and_the_way_out() -> None:
    with pytest.raises(UserError, match=r"'train.precision': fp16 is .* slower than fp32 on a CPU.*take fp32 or bf16"):
        parse(TrainConfig, {"precision": "fp16"}, "train")
    assert parse(TrainConfig, {"precision": "bf16"}, "train").precision == "bf16"

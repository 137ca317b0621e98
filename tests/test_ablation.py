"""Which settings matter: what leaves each out, planted effects, and real runs that are not run twice."""

import json
import random
from pathlib import Path

import pytest

from cnnlab import ablation, decision
from cnnlab.ablation import Setting, ablate, compare, settings_of
from cnnlab.commands.ablate import app
from cnnlab.config import unjudged
from cnnlab.errors import ConfigError
from cnnlab.record import Record
from cnnlab.stats import paired, t_tails
from tests.conftest import Train, read


def test_a_setting_is_left_out_back_to_its_default():
    recipe = ["experiment=quickstart", "augment=[flip_crop,cutout]", "trainer.precision=bf16-mixed"]
    settings, left_alone = settings_of(recipe)
    assert [setting.key for setting in settings] == [
        "data.batch_size", "augment.flip_crop", "augment.cutout", "optimizer.lr", "optimizer.weight_decay", "schedule",
        "trainer.precision",
    ]  # fmt: skip
    assert left_alone == {}
    whole, default = unjudged(recipe), unjudged(())
    for setting in settings:
        config = unjudged(setting.overrides)
        section, _, name = setting.key.partition(".")
        if name:
            assert config[section].get(name) == default[section].get(name)
            assert {**config[section], name: 0} == {**whole[section], name: 0}
        else:
            assert config[section] == default[section]
        assert {**config, section: 0} == {**whole, section: 0}


def test_what_a_recipe_takes_out_is_a_setting_too():
    (setting,), _ = settings_of(["~optimizer.nesterov", "data=shapes"])
    assert setting == Setting("optimizer.nesterov", ("data=shapes",))


def test_only_what_is_named_is_left_out():
    recipe = ["experiment=quickstart"]
    (setting,), _ = settings_of(recipe, ["trainer.max_epochs"])
    assert setting == Setting("trainer.max_epochs", ("experiment=quickstart", "trainer.max_epochs=10"))
    with pytest.raises(ConfigError, match=r"--drop model must be a setting that differs.*optimizer\.lr"):
        settings_of(recipe, ["model"])
    with pytest.raises(ConfigError, match="defaults of conf"):
        settings_of(["data=shapes"])


def test_planted_effects_are_told_from_a_setting_that_does_nothing():
    chance = random.Random(0)
    seeds = [chance.gauss(0.7, 0.02) for _ in range(5)]
    without = {
        "nothing": list(seeds),
        "noise": [value + chance.gauss(0, 0.002) for value in seeds],
        "help": [value - 0.03 + chance.gauss(0, 0.002) for value in seeds],
        "harm": [value + 0.02 + chance.gauss(0, 0.002) for value in seeds],
    }
    rows = compare(seeds, without, dict.fromkeys(without, ()), step=1e-4)
    assert [(row["setting"], row["answer"]) for row in rows[:2]] == [("harm", "harms"), ("help", "helps")]
    assert {row["answer"] for row in rows[2:]} == {"no evidence"}
    assert rows[0]["low"] < -0.02 < rows[0]["high"] < 0
    losses = compare(seeds, without, dict.fromkeys(without, ()), sign=-1)
    assert losses[0]["setting"] == "help"


def test_without_an_effect_few_ablations_answer_that_there_is_one():
    chance = random.Random(1)
    wrong = 0
    for _ in range(200):
        seeds = [chance.gauss(0, 1) for _ in range(5)]
        without = {str(key): [value + chance.gauss(0, 1) for value in seeds] for key in range(6)}
        wrong += any(row["answer"] != "no evidence" for row in compare(seeds, without, dict.fromkeys(without, ())))
    assert wrong <= 0.05 * 200 + 6  # two standard deviations


def test_pairs_that_repeat_one_difference_are_no_certainty():
    assert paired([0.01, 0.01], 0.01).p == pytest.approx(t_tails(2**0.5, 1))
    assert paired([0.0, 0.0]).p == 1


@pytest.mark.slow
def test_real_runs_are_ablated_and_not_run_twice(
    train: Train, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    begun = []

    def run_here(overrides: list[str], folder: Path) -> None:
        if Record(folder).status != "completed":
            begun.append(folder.name)
            train(*overrides, folder=folder)

    monkeypatch.setattr(decision, "_train", run_here)
    recipe = [
        *(line for line in small if not line.startswith("trainer")), "trainer.max_epochs=3", "optimizer.lr=1e-6",
        "optimizer.nesterov=true", "data.drop_last=true", "logger=none", "callbacks.dashboard=null",
    ]  # fmt: skip
    settings, _ = settings_of(recipe, ["optimizer.lr", "data.drop_last"])
    content = ablate(recipe, settings, "val/accuracy", tmp_path / "ablation", seeds=3)
    assert len(begun) == 9
    rows = {row["setting"]: row for row in content["settings"]}
    assert next(iter(rows)) == "optimizer.lr"
    assert rows["optimizer.lr"]["answer"] == "harms"
    assert (rows["data.drop_last"]["answer"], rows["data.drop_last"]["difference"]) == ("no evidence", 0)
    words = [
        "--drop",
        "optimizer.lr",
        "--drop",
        "data.drop_last",
        "--seeds",
        "3",
        "--folder",
        str(tmp_path / "ablation"),
    ]
    app([*recipe, *words], standalone_mode=False)
    assert "harms" in capsys.readouterr().out
    written = read(tmp_path / "ablation" / "ablation.json")
    assert written == json.loads(json.dumps(content | {"left_alone": {}}))
    assert (tmp_path / "ablation" / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert len(begun) == 9


def test_a_setting_that_the_recipe_cannot_be_built_without_is_named_and_the_others_are_answered(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = [*small, "model=speednet", "model.channels=[8,8]", "init=whiten", "optimizer.lr=0.02"]
    settings, left_alone = settings_of(recipe, ["model", "optimizer.lr"])
    assert not left_alone  # as a config it is right
    model, lr = settings
    with pytest.raises(decision.RefusedError, match="at least 75 filters") as refused:
        decision.train_seed(model.overrides, 0, "val/accuracy", tmp_path / "real", "without-model")
    assert refused.value.exit_code == 2
    asked = []

    def train_seed(overrides: tuple[str, ...], seed: int, metric: str, folder: Path, name: str) -> tuple[float, float]:
        asked.append(name)
        if name == "without-model":
            raise refused.value
        return seed + 0.1 * (name == "recipe"), 0.0

    monkeypatch.setattr(ablation, "train_seed", train_seed)
    content = ablate(recipe, [model, lr], "val/accuracy", tmp_path, seeds=2)
    assert [row["setting"] for row in content["settings"]] == ["optimizer.lr"]
    assert "75 filters" in content["left_alone"]["model"]
    assert asked.count("without-model") == 1
    with pytest.raises(decision.RefusedError):
        ablate(recipe, [model], "val/accuracy", tmp_path, seeds=2)

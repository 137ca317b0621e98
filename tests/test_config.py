"""The command line is right, or every mistake in it is named, at once and before torch is imported."""

import copy
import inspect
import itertools
import json
import math
import os
import random
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import QuotedString
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cnnlab import lock, trust
from cnnlab.config import CONF, ROOT, preflight, quote, references, resume_command, value_of
from cnnlab.config.checks import READ_BY_NAME, TAKEN_BY_BUILD, rule_of
from cnnlab.config.lines import as_text, parse
from cnnlab.config.rules import RULES, anything
from cnnlab.config.tree import OPTIONAL, chosen, content, groups, options
from cnnlab.errors import ConfigError, DamagedError, DataError, MachineError, UnsafeError
from cnnlab.files import flatten
from cnnlab.objective import own_direction
from cnnlab.source import COMPUTED, REQUIRED, signature
from cnnlab.wording import parse_duration

COMPOSED: dict[tuple, DictConfig] = {}


@pytest.fixture(autouse=True)
def each_config_is_composed_once(monkeypatch):
    """Spare most of the time of these tests; those in processes of their own compose as users do."""
    compose_anew = ConfigLoaderImpl.load_configuration

    def load(
        loader: ConfigLoaderImpl, config_name: str, overrides: list[str], run_mode: RunMode, **options: bool
    ) -> DictConfig:
        key = (str(loader.config_search_path), config_name, *overrides)
        if key not in COMPOSED:
            COMPOSED[key] = compose_anew(loader, config_name, overrides, run_mode, **options)
        return copy.deepcopy(COMPOSED[key])

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", load)


def mistakes(*argv: str) -> list[str]:
    """Return the lines in which a command line is refused."""
    with pytest.raises(ConfigError) as caught:
        preflight(argv)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def composed(*overrides: str) -> DictConfig:
    """Compose a config with Hydra alone."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def composed_with_hydra(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


# --- right command lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["experiment=quickstart"],
        ["trainer.accelerator=gpu", "trainer.devices=2", "trainer.strategy=ddp"],
        ["model.compile=reduce-overhead", "matmul_precision=highest"],
        ["trainer.devices=[0,1]", "trainer.precision=16", "trainer.max_time='00:01:00:00'"],
        ["trainer.limit_train_batches=0.5", "trainer.limit_val_batches=3", "trainer.fast_dev_run=true"],
        ["trainer.max_epochs=-1", "trainer.max_steps=100"],
        ["trainer.profiler={_target_: my.Profiler, depth: 3}"],
        ["data.path='x=1, y [2].npz'", "data.classes=[a,'b c','ü']", "data.mean=[0.5,0.4,0.3]"],
        ["seed=${data.split_seed}", "data.seed=${..seed}"],
        ["trainer._target_=my.Trainer", "+trainer.mine=1"],
        ["callbacks.figures=null", "logger.tensorboard=null"],
        ["model._target_=my.Network", "+model.anything={a: [1, {b: null}]}"],
        ["+optimizer.maximize=true", "++optimizer.lr=0.5", "~trainer.detect_anomaly"],
        ["+callbacks.mine={_target_: my.Callback, patience: x}", "callbacks=[default,ema]", "logger=none"],
        ["augment=[flip_crop,cutout]", "hydra.run.dir='outputs/a b'", "hydra/job_logging=none"],
        ["-m", "optimizer.lr=0.1,0.01", "seed=range(3)", "model=lenet,resnet18"],
        ["-m", "experiment=glob(*,exclude=transfer)", "seed=choice(1,2)"],
        ["-m", "hydra.sweeper=null", "model.channels.1=16,32"],
        ["--cfg", "job", "data=npz"],
        ["--hydra-help", "nonsense"],
        ["-sc", "query=bash"],
    ],
    ids=" ".join,
)
def test_right_command_line_passes(argv):
    assert sorted(preflight(argv)) == sorted(argv)


@pytest.mark.parametrize("path", ["/home/müller/x.npz", "a=b.npz", "a b=1 (2).npz", "C:\\x\\ü\\"])
def test_path_that_hydra_cannot_read_is_taken_as_it_is(path):
    assert composed(*preflight([f"data.path={path}"])).data.path == path


def test_flags_may_stand_among_overrides_and_hydra_reads_the_result():
    assert preflight(["seed=1", "-m", "optimizer.lr=0.1,0.2"]) == ["seed=1", "optimizer.lr=0.1,0.2", "-m"]


def test_every_option_of_every_group_passes(trained: Path):
    given = {
        **{f"data={option}": ["data.path=x"] for option in ("npz", "folder", "medmnist")},
        "data=dataset": ["data.train._target_=my.Photographs"],
        "experiment=transfer": ["data.path=x.npz", f"init_from='{trained}'"],
        "model=custom": ["model._target_=my.Network"],
        "metrics=balanced_accuracy": ["objective.metric=val/balanced_accuracy"],
        "metrics=kappa": ["objective.metric=val/kappa"],
        "model=timm": ["model.name=resnet18"],
        "model=torchvision": ["model.name=resnet18"],
        "classifier=distillation": [f"classifier.teacher='{trained}'"],
    }
    # A search has a space and a recipe settings that suit some options of the others and not all.
    alone = ("search", "experiment")
    choices = [[f"{group}={option}" for option in options(group)] for group in groups() if group not in alone]
    recipes = [(f"experiment={option}",) for option in options("experiment")]
    for row in [*itertools.zip_longest(*choices), *recipes]:
        lines = [line for line in row if line]
        preflight([*lines, *(extra for line in lines for extra in given.get(line, []))])


def test_rules_cover_every_flag_of_the_trainer():
    from pytorch_lightning import Trainer

    flags = set(inspect.signature(Trainer).parameters) - {"logger", "callbacks"}
    config = cast(dict, OmegaConf.to_container(composed(), resolve=False))
    assert flags == set(config["trainer"]) - {"_target_"}
    assert not [name for name in flags if rule_of(("trainer", name), config) is anything]


# --- keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("trainer.acelerator=gpu", "trainer.accelerator"),
        ("Trainer.Accelerator=gpu", "trainer.accelerator"),
        ("optimizer.learning_rate=0.1", "optimizer.lr"),
        ("optimizer.weight-decay=0.1", "optimizer.weight_decay"),
        ("optimzer.lr=0.1", "optimizer.lr"),
        ("learning_rate=0.1", "optimizer.lr"),
        ("lr=0.1", "optimizer.lr"),
        ("batch_size=32", "data.batch_size"),
        ("data.batchsize=32", "data.batch_size"),
        ("bs=32", "data.batch_size"),
        ("epochs=3", "trainer.max_epochs"),
        ("trainer.epochs=3", "trainer.max_epochs"),
        ("gpus=2", "trainer.devices"),
        ("modle=lenet", "model"),
        ("network=lenet", "model"),
        ("scheduler=cosine", "schedule"),
        ("datapath=x.npz", "data.path"),
        ("~trainer.acelerator", "trainer.accelerator"),
        ("trainer={acelerator: gpu}", "trainer.accelerator"),
        ("callbacks.checkpoint.every_n_step=3", "callbacks.checkpoint.every_n_steps"),
        ("hydra.run.dri=x", "hydra.run.dir"),
    ],
)
def test_misspelt_key_is_answered_with_the_nearest(override, meant):
    (line,) = mistakes(override)
    assert "is no key of this config" in line
    assert line.endswith(f"; did you mean {meant}?")


def test_key_of_another_option_names_that_option():
    (line,) = mistakes("optimizer=adam", "optimizer.momentum=0.9")
    assert line.startswith("optimizer.momentum is no key of this config; ")
    assert "optimizer=sgd" in line


@pytest.mark.parametrize(
    "override",
    [
        "+trainer.foo=1",
        "++trainer.foo=1",
        "+trainer={foo: 1}",
        "+foo=1",
        "++foo.bar=1",
        "+data.foo=1",
        "++data.keys.foo=1",
        "+eval.foo=1",
        "+objective.foo=1",
    ],
)
def test_plus_smuggles_no_unknown_key_in(override):
    (line,) = mistakes(override)
    assert "foo" in line
    assert "is no key of this config" in line


def test_plus_on_a_known_key_is_explained():
    assert mistakes("+seed=1") == ["seed exists already: leave out the plus"]
    assert mistakes("+model=lenet") == ["+model=lenet: model exists already: leave out the plus"]


@pytest.mark.parametrize("key", ["seed", "objective.metric", "loss._target_", "model._target_"])
def test_what_a_run_needs_cannot_be_deleted(key):
    assert f"{key} is missing, and a run needs it" in mistakes(f"~{key}")


def test_an_option_lacks_no_key_that_is_read_by_name():
    for group, names in READ_BY_NAME.items():
        source = " ".join(path.read_text() for path in (ROOT / "cnnlab").rglob("*.py"))
        assert {*re.findall(rf"cfg\.{group}\.(\w+)", source)} - {"get", "update"} <= {*names}
        for name in names:
            lines = mistakes(f"~{group}.{name}")
            assert any(f"~{group}.{name} is null" in line or f"{group}.{name} is missing" in line for line in lines), (
                name
            )


def test_group_cannot_be_deleted():
    assert mistakes("~data") == ["~data: data is missing, and a run needs it"]
    for argument in ("~logger", "logger=[]"):
        (line,) = mistakes(argument)
        assert line.endswith("logger is missing, and a run needs it; did you mean logger=none?")


def test_callback_without_a_class_is_refused():
    assert mistakes("+callbacks.mine.patience=3") == ["callbacks.mine._target_ is missing, and a run needs it"]
    assert mistakes("schedule._target_=") == ["schedule._target_ must be a text that is not empty, got ''"]


def with_experiment(folder: Path, text: str) -> list[str]:
    """Return the arguments that take an experiment file with a text."""
    recipe = folder / "experiment" / "mine.yaml"
    recipe.parent.mkdir()
    recipe.write_text(text)
    return ["experiment=mine", "--config-dir", str(folder)]


def test_mistakes_in_an_experiment_file_are_found(tmp_path):
    text = "# @package _global_\ntrainer:\n  max_epoch: 3\noptimizer:\n  lr: fast\n"
    assert mistakes(*with_experiment(tmp_path, text)) == [
        "optimizer.lr must be a number above 0, got fast",
        "trainer.max_epoch is no key of this config; did you mean trainer.max_epochs?",
    ]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed: 1\n", "must begin with the line `# @package _global_`"),
        ("# @package _global_\nseed: [1\n", "mine.yaml is no YAML"),
        (
            "# @package _global_\ndefaults:\n  - override /model: resnet81\n",
            "Could not find 'model/resnet81'",
        ),
        ("# @package _global_\ndefaults:\n  - override /modle: lenet\n", "Could not override 'modle'"),
        ("# @package _global_\nresume: x\n", "resume is for the command line only"),
    ],
)
def test_experiment_file_that_cannot_be_taken_is_answered_in_one_line(tmp_path, text, part):
    (line,) = mistakes(*with_experiment(tmp_path, text))
    assert part in line


# --- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("model=resnet81", "model=resnet18"),
        ("optimizer=sdg", "optimizer=sgd"),
        ("data=Cifar10", "data=cifar10"),
        ("augment=[flip_crop,cutot]", "augment=cutout"),
        ("augment=null", "augment=none"),
        ("experiment=quikstart", "experiment=quickstart"),
        ("hydra/launcher=bsic", "hydra/launcher=basic"),
    ],
)
def test_misspelt_option_is_answered_with_the_nearest_and_the_list(override, meant):
    (line,) = mistakes(override)
    group = meant.split("=")[0]
    assert f"no such option; did you mean {meant}?" in line
    assert group.startswith("hydra") or set(options(group)) <= set(line.split("(")[1].strip(")").split(", "))


def test_keys_below_a_misspelt_option_are_not_judged():
    assert len(mistakes("model=resnet81", "model.blocks=[1]", "model.nothing=1")) == 1


@pytest.mark.parametrize("option", ["../train", "/etc/passwd", "5", "'a b'", "${seed}", "''"])
def test_option_that_is_no_name_is_refused(option):
    assert "no such option" in mistakes(f"model={option}")[0]


def test_group_of_one_option_takes_no_list():
    assert mistakes("model=[lenet,resnet18]") == ["model=[lenet, resnet18]: model takes one option"]


# --- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "trainer.max_epochs=ten",
            "trainer.max_epochs must be a whole number of at least 1, or -1 for no limit, or null; got ten",
        ),
        ("data.batch_size=0", "data.batch_size must be a whole number of at least 1, got 0"),
        ("data.batch_size=1.5", "data.batch_size must be a whole number of at least 1, got 1.5"),
        ("data.batch_size=true", "data.batch_size must be a whole number of at least 1, got true"),
        ("data.batch_size={a: 1}", "data.batch_size must be a whole number of at least 1, got {a: 1}"),
        ("optimizer.lr=-1", "optimizer.lr must be a number above 0, got -1"),
        ("optimizer.lr=nan", "optimizer.lr must be a number above 0, got nan"),
        ("optimizer.lr=inf", "optimizer.lr must be a number above 0, got inf"),
        ("optimizer.lr='0.1'", "optimizer.lr must be a number above 0, got '0.1'"),
        ("optimizer.lr=null", "optimizer.lr must be a number above 0, got null"),
        ("optimizer.weight_decay=-0.1", "optimizer.weight_decay must be a number of at least 0, got -0.1"),
        ("optimizer.momentum=1", "optimizer.momentum must be a number of at least 0 and below 1, got 1"),
        ("model.dropout=1.5", "model.dropout must be a number of at least 0 and below 1, got 1.5"),
        ("loss.label_smoothing=2", "must be a number of at least 0 and of at most 1, got 2"),
        ("seed=x", "seed must be a whole number from 0 to 4294967295, got x"),
        ("seed=-1", "seed must be a whole number from 0 to 4294967295, got -1"),
        ("debug=yes", "debug must be true or false, got yes"),
        ("objective.mode=maximum", "objective.mode must be one of auto, max, min; got maximum; did you mean max?"),
        ("data.path=''", "data.path must be a text that is not empty, got ''"),
        ("trainer.gradient_clip_algorithm=nrom", "did you mean norm?"),
        ("trainer.accelerator=gpuu", "got gpuu; did you mean gpu?"),
        ("trainer.precision=bf16-mixd", "did you mean bf16-mixed?"),
        ("trainer.strategy=dpp", "trainer.strategy must be a name such as auto, ddp"),
        ("trainer.devices=0", "trainer.devices must be"),
        ("model.compile=fastest", "model.compile must be"),
        ("matmul_precision=low", "matmul_precision must be"),
        ("trainer.devices=[]", "trainer.devices must be"),
        ("trainer.limit_train_batches=1.5", "trainer.limit_train_batches must be"),
        ("trainer.val_check_interval=0.0", "trainer.val_check_interval must be"),
        ("trainer.max_time='1 hour'", "trainer.max_time must be a time as DD:HH:MM:SS"),
        ("callbacks.checkpoint.every_n_seconds=0", "must be a number above 0, or null; got 0"),
        ("model.channels=[6,x]", "must be a list of values, each a whole number of at least 1; got [6, x]"),
        ("model=null", "model=null: no such option"),
        ("+callbacks.mine=5", "callbacks.mine must be a group of keys, or null; got 5"),
        ("callbacks.figures=5", "callbacks.figures must be a group of keys, or null; got 5"),
        ("trainer.plugins.x=1", "trainer.plugins.x is no key of this config"),
        ("logger.tensorboard.default_hp_metric=maybe", "must be true or false"),  # by the type of its default
        ("resume=5", "resume must be a run's folder"),
    ],
)
def test_wrong_value_is_answered_with_key_rule_and_value(override, line):
    (answer,) = mistakes(override)
    assert line in answer
    assert answer.startswith(override.partition("=")[0].strip("+"))


def test_all_mistakes_are_reported_together_each_on_its_line():
    wrong = ["trainer.acelerator=gpu", "optimizer.lr=-1", "model=resnet81", "seed=x", "nonsense", "a=["]
    lines = mistakes(*wrong)
    assert len(lines) == len(wrong)
    for override in wrong:
        assert sum(line.startswith(override.split("=")[0]) for line in lines) == 1


def test_mistakes_in_values_name_the_rule_and_what_came():
    assert [line.removeprefix("cnnlab: error: ") for line in mistakes("seed=x", "data.batch_size=0")] == [
        "seed must be a whole number from 0 to 4294967295, got x",
        "data.batch_size must be a whole number of at least 1, got 0",
    ]


@pytest.mark.parametrize(
    ("argv", "key"),
    [(["data=npz"], "data.path=FILE.npz"), (["model=custom"], "model._target_=PACKAGE.MODULE.CLASS")],
)
def test_value_still_to_be_given_is_asked_for(argv, key):
    (line,) = mistakes(*argv)
    assert line.endswith(f"must be given: {key}")


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["data.val_size=0", "callbacks=[default,early_stopping]"], "data.val_size=0 leaves no validation"),
        (["trainer.max_epochs=-1"], "never ends"),
        (["optimizer.momentum=0"], "optimizer.nesterov=false"),
        (["optimizer=adam", "optimizer._target_=torch.optim.SparseAdam", "~optimizer.weight_decay"], "use Adam"),
        (
            [
                "optimizer=adam",
                "optimizer._target_=torch.optim.LBFGS",
                "~optimizer.betas",
                "~optimizer.eps",
                "~optimizer.weight_decay",
            ],
            "model.channels_last=false",
        ),
        (["trainer.min_epochs=20"], "is more than trainer.max_epochs=10"),
        (["trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn: use ddp"),
        (["-m", "seed=0,1", "trainer.strategy={_target_: s.S, start_method: fork}"], "use ddp"),
    ],
)
def test_options_that_exclude_each_other_are_refused(argv, part):
    (line,) = mistakes(*argv)
    assert part in line


def test_endless_training_with_early_stopping_is_allowed():
    preflight(["trainer.max_epochs=-1", "callbacks=[default,early_stopping]"])


def test_references_are_followed():
    assert mistakes("optimizer.lr=${nothing.there}") == [
        "optimizer.lr: ${nothing.there} refers to a key that isn't there"
    ]
    assert mistakes("optimizer.lr=${objective.mode}") == ["optimizer.lr must be a number above 0, got auto"]
    assert mistakes("optimizer.lr=${.weight_decay}", "optimizer.weight_decay=0.0") == [
        "optimizer.lr must be a number above 0, got 0.0"
    ]
    assert mistakes("optimizer.lr=${optimizer.lr}") == [
        "optimizer.lr: ${optimizer.lr} refers to a key that isn't there"
    ]


def test_no_resolver_runs_while_checking():
    called = []
    OmegaConf.register_new_resolver("recorded", lambda *_: called.append(1), replace=True)
    try:
        preflight(["data.path=${recorded:x}", "seed=${recorded:y}", "optimizer.lr=${seed}"])
    finally:
        OmegaConf.clear_resolver("recorded")
    assert not called


# --- sweeps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["optimizer.lr=0.1,0.01", "seed=range(3)", "augment=flip_crop,cutout"])
def test_several_values_need_the_sweep_flag(override):
    (line,) = mistakes(override)
    assert line.startswith(f"{override}: several values need -m")


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["optimizer.lr=0.1,-0.01"], "optimizer.lr must be a number above 0, got -0.01"),
        (["seed=range(-1,2)"], "seed must be a whole number from 0 to 4294967295, got -1"),
        (["model.channels.0=6,12,x"], "model.channels must be a list of values"),
        (["model=lenet,resnet81"], "model=resnet81: no such option"),
        (["model=lenet,resnet18", "model.hidden=[9]"], "(with model=resnet18)"),
        (["data.val_size=9,0", "callbacks=[default,early_stopping]"], "data.val_size=0 leaves no"),
        (["experiment=glob(nothing*)"], "there is nothing to sweep over"),
        (["seed=range(0,3,0)"], "must not be zero"),
        (["hydra.job.chdir=true,false"], "Hydra's own settings can't be swept"),
        (["optimizer.lr=interval(0.1,1)"], "an interval is for a search"),
        (["search=random", "optimizer.lr=interval(1,0)"], "begins with its smaller end"),
        (["search=random", "optimizer.lr=interval(0,inf)"], "begins with its smaller end"),
    ],
)
def test_every_value_of_a_sweep_is_checked(argv, part):
    (line,) = mistakes("-m", *argv)
    assert part in line


def test_a_mistake_in_each_of_many_values_is_counted_beyond_ten_lines():
    *lines, last = mistakes("-m", "optimizer.lr=range(-30,0)")
    assert len(lines) == 10
    assert last.startswith("20 more mistakes")


@pytest.mark.parametrize("devices", ["trainer.devices=2", "trainer.devices=1,2", "trainer.devices=[0,1]"])
def test_sweep_over_several_devices_is_refused(devices):
    (line,) = mistakes("-m", "seed=0,1", devices)
    assert line.startswith("trainer.devices must be 1 in a sweep")


# --- what can't be read ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["nonsense"], "nonsense: a setting is written KEY=VALUE"),
        (["quickstart"], "did you mean experiment=quickstart?"),
        (["=5"], "=5: a setting is written KEY=VALUE"),
        (["data.classes=[a,b"], "can't be read"),
        (["data.path='x"], "can't be read"),
        (["seed=${"], "can't be read"),
        (["seed=nothing(3)"], "Unknown function 'nothing'"),
        (["seed=" + "[" * 5000], "can't be read"),
        (["seed=" + "9" * 5000], "seed must be"),
        (["seed=\udcff"], "seed must be"),
        (["a\nb=\x1b[31m"], "a\\nb"),
        (["--epochs", "3"], "unrecognized arguments: --epochs"),
        (["--resolve"], "--resolve needs --cfg"),
        (["-m", "--cfg", "job"], "only one of"),
        (["--config-dir", "/nowhere"], "is no folder"),
        (["--config-name", "other"], "Cannot find primary config 'other'"),
        (["hydra.job.chdir=maybe"], "is not a valid bool"),
        (["hydra.searchpath=[/nowhere]"], "path=/nowhere is not available"),
        (["++trainer._target_={_target_: x}"], "trainer._target_ must be a text that is not empty"),
        (["-m", "++hydra.sweeper=${hydra:run.dir}", "seed=interval(0,x)"], "str is incompatible"),
        (["+data@other=shapes", "data@other=shapes"], "other"),
    ],
)
def test_what_cannot_be_read_is_answered_in_one_short_line(argv, part):
    (line,) = mistakes(*argv)
    assert part in line
    assert line.isprintable()
    assert len(line) < 300


def random_overrides(count: int) -> list[str]:
    """Return strings of chance: of any characters, of the grammar's own, and right overrides damaged."""
    chance = random.Random(0)
    grammar = "abz.=,:'\"[]{}()$\\+~@/ -_019\t%*?#&é\u202e"
    right = [
        *("seed=1", "optimizer.lr=0.1", "data.classes=[a,'b c']", "+optimizer.maximize=true", "~trainer.benchmark"),
        *("trainer.max_epochs=range(1,9)", "model=lenet", "augment=[flip_crop,cutout]", "hydra.run.dir=x"),
        *("data.path=${oc.env:HOME}", "data@a.b=shapes", "experiment=glob(*)", "++trainer.x=choice(1,2)"),
    ]

    def one() -> str:
        match chance.randrange(3):
            case 0:
                return "".join(chr(chance.randrange(1, 0x3000)) for _ in range(chance.randrange(1, 30)))
            case 1:
                return "".join(chance.choices(grammar, k=chance.randrange(1, 30)))
        word = list(chance.choice(right))
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(word) + 1)
            word[at : at + chance.randrange(2)] = chance.choice(grammar)
        return "".join(word)

    return [one() for _ in range(count)]


@pytest.mark.parametrize("flag", [[], ["-m"]])
def test_strings_of_chance_are_refused_or_valid_but_never_a_traceback(flag):
    strings = [line for line in random_overrides(1000) if not line.startswith("-")]
    for first in range(0, len(strings), 100):
        lines = mistakes(*flag, *strings[first : first + 100])
        assert all(line.isprintable() for line in lines)


def test_a_text_in_an_override_stays_a_text():
    words = [
        "1e5",
        "32",
        "-3",
        "1_000",
        ".5",
        "true",
        "Null",
        "nan",
        "inf",
        "a",
        "a b",
        "x,y",
        "it's",
        "",
        "2026-01-01",
    ]
    for text in [*words, *random_overrides(200)]:
        value = parse(f"x={as_text(text)}").value()
        assert (value.text if isinstance(value, QuotedString) else value) == text


def test_strings_of_chance_that_pass_alone_are_what_hydra_takes():
    passed = 0
    keys = ("seed=", "optimizer.lr=", "+optimizer.maximize=", "hydra.run.dir=", "data.path=")
    for line in random_overrides(1000):
        if not line.startswith(keys):
            continue  # hardly ever a right one
        try:
            argv = preflight([line])
        except (ConfigError, SystemExit):
            continue
        composed(*argv)
        passed += 1
    assert passed >= 5


# --- going on with a run ---------------------------------------------------------------------------------


def record_run(folder: Path, *overrides: str) -> Path:
    """Leave what Hydra leaves in a run's folder."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(composed(*overrides)))
    (folder / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(list(overrides)))
    return folder


@pytest.mark.parametrize("name", ["a b", "ü=1,2", "it's [x] {y}", 'say "x"', "back\\slash #1 $x"])
def test_resume_goes_on_in_the_folder_with_its_own_overrides(tmp_path, name):
    own = ["optimizer.lr=0.05", "+optimizer.maximize=true", "data.path='x=1, ü.npz'"]
    folder = record_run(tmp_path / name, *own)
    argv = preflight([f"resume={quote(folder)}", "trainer.max_epochs=20"])
    config = composed_with_hydra(*argv)
    assert argv[: len(own)] == own
    assert config.hydra.run.dir == config.resume == str(folder)
    assert config.hydra.output_subdir is None  # the record of how the run began stays
    assert (config.optimizer.lr, config.trainer.max_epochs) == (0.05, 20)
    assert preflight(argv) == argv


@pytest.mark.parametrize("budget", ["1s", "59s", "1min", "1.5min", "119s", "2min", "600s", "1h", None])
def test_a_recipe_can_choose_by_the_time_it_is_given(tmp_path, budget):
    seconds = {"30s": 30, "1.5min": 90, "10min": 600}
    values = dict(zip(seconds, ([1, 2], [3], "mirror"), strict=True))
    lines = [
        f"budget={'null' if budget is None else budget}",
        "note='${by_budget:{1.5min: [3], 30s: [1, 2], 10min: mirror}}'",
    ]
    length = math.inf if budget is None else parse_duration(budget) or math.inf
    longest = max((time for time in seconds if seconds[time] <= length), key=seconds.__getitem__, default="30s")
    config = composed(*lines)
    assert config.note == values[longest]
    OmegaConf.resolve(resolved := OmegaConf.masked_copy(config, ["budget", "note"]))  # as --resolve does
    assert resolved.note == values[longest]
    assert references.get(cast(dict, OmegaConf.to_container(config)), "note") == values[longest]
    folder = record_run(tmp_path / "run", *lines)
    if budget is not None:  # the same steps again, of the same recipe
        assert composed(f"budget='{folder}'", lines[1]).note == values[longest]


def test_what_a_recipe_chooses_by_time_is_checked_like_any_value(tmp_path):
    choice = "model.channels='${by_budget:{1s: [8, 8], 5min: [0, 8]}}'"
    lines = ["model=speednet", choice, "trainer.max_epochs=-1"]
    preflight([*lines, "budget=1min"])
    with pytest.raises(ConfigError, match=r"model\.channels must .* got \[0, ?8\]"):
        preflight([*lines, "budget=5min"])
    with pytest.raises(ConfigError, match="a value for each of some times"):
        preflight(["model=speednet", "model.channels='${by_budget:{soon: [8, 8]}}'"])
    folder = tmp_path / "endless"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(f"budget: {folder}\n")
    with pytest.raises(ConfigError, match="that run's budget is its own"):
        references.by_budget({"1s": 1}, {"budget": str(folder)})
    preflight([f"resume={record_run(tmp_path / 'run', *lines, 'budget=1min')}"])  # it depends on nothing outside


def test_resume_finds_a_folder_relative_to_here(tmp_path, monkeypatch):
    record_run(tmp_path / "a", "seed=3")
    monkeypatch.chdir(tmp_path)
    assert f"hydra.run.dir='{tmp_path}/a'" in preflight(["resume=a"])


def test_resume_last_takes_the_newest_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no run below outputs" in mistakes("resume=last")[0]
    for age, name in enumerate(["new", "old"]):
        folder = record_run(tmp_path / "outputs" / "day" / name)
        (folder / "run.json").write_text("{}")
        os.utime(folder / "run.json", (1000 - age, 1000 - age))
    assert f"resume='{tmp_path}/outputs/day/new'" in preflight(["resume=last"])


@pytest.mark.parametrize(
    "change",
    [
        "trainer.max_epochs=20", "trainer.devices=2", "logger=csv", "~callbacks.figures", "data.path=y.npz",
        "trainer.enable_progress_bar=false", "callbacks.checkpoint.every_n_steps=10", "data.seed=${seed}",
    ],
)  # fmt: skip
def test_resume_allows_what_no_step_depends_on(tmp_path, change):
    preflight([f"resume={record_run(tmp_path / 'run')}", change])


def test_resume_with_another_config_is_refused_with_the_differences(tmp_path):
    folder = record_run(tmp_path / "run", "optimizer.lr=0.05")
    first, *differences = mistakes(f"resume={folder}", "optimizer.lr=0.1", "seed=1", "trainer.max_epochs=20")
    assert first.startswith(f"resume={folder}: a run keeps the config that it began with")
    assert sorted(differences) == [
        "data.seed: was 0, now 1",
        "optimizer.lr: was 0.05, now 0.1",
        "seed: was 0, now 1",
    ]


def test_resume_takes_nothing_of_hydra_from_the_folder(tmp_path):
    folder = record_run(tmp_path / "run")
    hostile = [
        *("seed=0", "hydra.job_logging.handlers.x.class=os.system", "+hydra.sweeper.x=1", "resume=/x"),
        *("hydra/launcher=basic", "++hydra.run.dir=/", "~hydra.job.name", "hydra={job: {name: x}}"),
        "+data@hydra.x=shapes",
    ]
    (folder / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(hostile))
    assert preflight([f"resume={folder}"])[:2] == ["seed=0", f"resume='{folder}'"]


FOREIGN = {
    "+callbacks.x={_target_: os.system, command: ls}": r"callbacks\.x\._target_=os\.system",
    "model._target_=mynet.Net": r"trusted=\[mynet\]",
    "trainer.plugins={_target_: os.system}": r"trainer\.plugins\._target_",
    "+optimizer.maximize=${oc.env:HOME}": "would be computed",
    "logger.tensorboard.save_dir=/tmp/x": "is a place",
    "logger.tensorboard.save_dir=conf": "is a place",
}


@pytest.mark.parametrize("place", ["x", "null", "../x"])
def test_a_run_writes_to_one_folder(tmp_path, place):
    line = f"trainer.default_root_dir={place}"
    for lines in ([line], [f"resume={record_run(tmp_path / 'run', line)}"]):
        with pytest.raises(ConfigError, match=rf"{re.escape(line)}: .* give hydra\.run\.dir"):
            preflight(lines)


@pytest.mark.parametrize("line", FOREIGN)
def test_what_a_folder_asks_for_beyond_known_classes_is_refused_unless_given_again(tmp_path, line):
    folder = record_run(tmp_path / "run")
    (folder / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml([line, "trusted=[mynet, os]"]))
    (folder / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(composed(line)))
    with pytest.raises(UnsafeError, match=FOREIGN[line]):
        preflight([f"resume={folder}"])
    assert line in preflight([f"resume={folder}", line])


@pytest.mark.parametrize("option", ["folder", "npz"])
def test_pictures_are_packed_on_resume_only_where_they_were_before(tmp_path, option):
    photos = tmp_path / "my photos"
    photos.mkdir()
    lines = [f"data={option}", f"data.path={quote(photos)}"]
    folder = record_run(tmp_path / "run", *lines)
    with pytest.raises(UnsafeError, match=r"would be packed into a file beside it"):
        preflight([f"resume={folder}"])
    (tmp_path / "my photos-0123456789ab.npz").write_bytes(b"")
    preflight([f"resume={folder}"])


def test_pictures_that_are_not_there_are_made_by_nobody():
    with pytest.raises(DataError, match=r"nowhere does not exist\. Check it, make it \(`cnnlab data --help`\)\.$"):
        preflight(["data=folder", "data.path=nowhere"], verify_presence=True)


def test_a_folder_is_no_npz_file(tmp_path):
    with pytest.raises(DataError, match="it is a folder; pictures in one are data=folder"):
        preflight(["data=npz", f"data.path={tmp_path}"], verify_presence=True)


def test_the_person_at_the_keyboard_can_trust_a_package_and_choose_own_options(tmp_path):
    folder = record_run(tmp_path / "run", "model._target_=mynet.Net")
    preflight([f"resume={folder}", "trusted=[mynet]"])
    own = tmp_path / "conf" / "model"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("_target_: mynet.Net\nchannels_last: false\ncompile: false\n")
    folder = record_run(tmp_path / "other")
    (folder / ".hydra" / "overrides.yaml").write_text("- model=mine\n")
    mine = {"_target_": "mynet.Net", "channels_last": False, "compile": False}
    (folder / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml({**composed(), "model": mine}))
    assert "model=mine" in preflight([f"resume={folder}", "--config-dir", str(tmp_path / "conf")])


def test_nothing_that_a_folder_names_is_imported_to_see_whether_it_is_there(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = record_run(tmp_path / "run", "model=lenet")
    (folder / ".hydra" / "overrides.yaml").write_text("- model._target_=evil.Net\n")
    with pytest.raises(UnsafeError, match="none of the classes"):
        preflight([f"resume={folder}"], verify_presence=True)
    preflight([f"resume={folder}", "model._target_=cnnlab.model.ConvNet"], verify_presence=True)


def test_a_folder_with_a_link_that_leads_outside_is_refused(tmp_path):
    folder = record_run(tmp_path / "run")
    (folder / "inside").symlink_to(folder / ".hydra")
    preflight([f"resume={folder}"])
    (folder / "train.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeError, match=r"train\.log is a link"):
        preflight([f"resume={folder}"])


def test_data_is_never_drawn_where_only_a_folder_says(tmp_path):
    folder = record_run(tmp_path / "run", "data=shapes", f"data.path={tmp_path}/new.npz")
    with pytest.raises(DataError, match=r"give data\.path"):
        preflight([f"resume={folder}"])
    preflight([f"resume={folder}", f"data.path={tmp_path}/new.npz"])


def test_hydras_own_rerun_which_unpickles_is_refused():
    with pytest.raises(UnsafeError, match="resume=FOLDER"):
        preflight(["--experimental-rerun", "config.pickle"])


def test_a_new_run_never_begins_in_the_folder_of_another(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert "resume=" in mistakes(f"hydra.run.dir={tmp_path}/run")[0]


def test_a_folder_that_is_being_written_is_refused_at_once(tmp_path):
    folder = record_run(tmp_path / "run")
    held = lock.take(folder)
    for argv in ([f"resume={folder}"], [f"hydra.run.dir={folder}"]):
        with pytest.raises(MachineError, match=f"process {os.getpid()} on"):
            preflight(argv)
    lock.leave(held)
    preflight([f"resume={folder}"])


@pytest.mark.parametrize("name", ["overrides.yaml", "config.yaml"])
@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"text", b"\xff\xfe\x00", b"- 5", b"- 'a=['", b"!!python/object/apply:os.system [true]",
        b"a: &a [x]\nb: [*a, *a]", b"[" * 5000, b"- 2001-99-99",
    ],
)  # fmt: skip
def test_resume_from_a_damaged_record_is_refused(tmp_path, name, damage):
    folder = record_run(tmp_path / "run")
    (folder / ".hydra" / name).write_bytes(damage)
    with pytest.raises((ConfigError, DamagedError), match=name):
        preflight([f"resume={folder}"])


@pytest.mark.parametrize("argv", [["resume=nowhere"], ["resume="], ["resume=[a]"], ["resume=${seed}"]])
def test_resume_of_no_run_is_refused(argv):
    (line,) = mistakes(*argv)
    assert line.startswith("resume")
    assert "a run's folder" in line


def test_a_sweep_does_not_go_on_in_a_runs_folder(tmp_path):
    assert "must be a sweep's folder" in mistakes("-m", f"resume={record_run(tmp_path / 'run')}", "seed=1,2")[0]


# --- as processes ----------------------------------------------------------------------------------------

SCRIPT = """
import sys
import hydra
from cnnlab.config import CONF, preflight
from cnnlab.errors import ConfigError

@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg):
    raise SystemExit("the run began")

try:
    sys.argv[1:] = preflight(sys.argv[1:])
except ConfigError as error:
    sys.exit(f"cnnlab: error: {error}")
main()
assert "torch" not in sys.modules
"""


def run(folder: Path, *argv: str, **env: str) -> tuple[int, str, str, float]:
    """Run a command line in a process; return its exit code, output, errors, seconds of processor time."""
    script = folder / "train.py"
    script.write_text(SCRIPT)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(script), *argv],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **env},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, done.stdout, done.stderr, seconds


@pytest.mark.parametrize(
    "argv",
    [
        ["trainer.acelerator=gpu"],
        ["model=resnet81", "optimizer.learning_rate=0.1", "trainer.max_epochs=ten"],
        ["\x01\x02=[{(", "=,'"],
        ["-m", "optimizer.lr=0.1,-1"],
    ],
)
def test_wrong_command_line_ends_at_once_and_writes_nothing(tmp_path, argv):
    code, output, errors, seconds = run(tmp_path, *argv)
    assert code == 1  # the script's; train.py turns the error into 2
    assert output == ""
    assert errors.startswith("cnnlab: error: ")
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]
    assert seconds < 1.5


def test_help_lists_groups_options_and_commands_at_once(tmp_path):
    code, output, errors, seconds = run(tmp_path, "--help")
    assert (code, errors) == (0, "")
    unwrapped = output.replace(f"\n{' ' * 14}", " ")
    for group in groups():
        (line,) = [line for line in unwrapped.splitlines() if line.startswith(f"  {group} ")]
        for option in options(group):
            assert f"{option}*" in line if option in chosen(group) else option in line
    for command in (
        "quickstart",
        "trainer.accelerator=gpu",
        " -m ",
        "resume=last",
        "tensorboard",
        "--cfg job",
    ):
        assert command in output
    assert max(map(len, output.splitlines())) <= 120
    assert seconds < 1.5


def test_config_is_shown_at_once(tmp_path):
    code, output, errors, seconds = run(tmp_path, "--cfg", "job", "data=npz", "trainer.max_epochs=7")
    assert (code, errors) == (0, "")
    assert OmegaConf.create(output).trainer.max_epochs == 7
    assert seconds < 1.5


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("model=resn", "model=resnet18"), ("trainer.acc", "trainer.accelerator="), ("mod", "model=")],
)
def test_tab_key_completes_at_once(tmp_path, typed, offered):
    line = f"python train.py {typed}"
    code, output, errors, seconds = run(
        tmp_path, "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)), COMP_CWORD="2"
    )
    assert (code, errors) == (0, "")
    assert offered in output.split()
    assert seconds < 1.5


def test_config_package_imports_nothing_heavy():
    heavy = ["torch", "numpy", "pytorch_lightning", "matplotlib"]
    code = f"import sys, cnnlab.config; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_runs_of_the_same_second_have_folders_of_their_own():
    first, second = (composed_with_hydra().hydra.run for _ in range(2))
    assert first.dir == first.dir
    assert first.dir[-6:] != second.dir[-6:]
    assert int(first.dir[-6:], 16) >= 0


# --- the conf tree ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [group for group, several in groups().items() if several])
def test_no_two_options_of_a_list_group_share_a_key(group):
    """Given together, one of the two would be lost without a word."""
    keys = [key for option in options(group) for key in content(group, option)]
    assert len(keys) == len(set(keys))


def test_an_option_says_only_what_differs_from_the_one_that_it_begins_with():
    for group in groups():
        for option in options(group):
            own: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml")) or {}
            for base in own.get("defaults", ()) if group not in ("experiment", "search") else ():
                if base in options(group):
                    same = [key for key, value in content(group, base).items() if own.get(key, ...) == value]
                    assert not same, f"{group}/{option}.yaml repeats {same} of {base}"


@pytest.mark.parametrize("group", ["data", "model", "trainer", "search"])
def test_contents_of_the_tree_are_those_that_hydra_composes(group):
    for option in options(group):
        whole: Any = OmegaConf.to_container(composed(f"{group}={option}"), resolve=False)
        assert content(group, option) == whole[group]


# --- arguments of classes --------------------------------------------------------------------------------


def arguments_in_conf() -> list[tuple[str, str, str, object]]:
    """List the arguments that the options give to their classes: option, key, class, value."""
    rows = []

    def walk(option: str, key: tuple[str, ...], value: object) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if "_target_" in value and name not in ("_target_", *TAKEN_BY_BUILD.get(".".join(key), ())):
                    rows.append((option, ".".join((*key, name)), value["_target_"], inner))
                walk(option, (*key, name), inner)

    for group in groups():
        for option in options(group) if group not in OPTIONAL else ():
            walk(f"{group}={option}", (group,), content(group, option))
    return rows


# What the package behind an open constructor (**kwargs) takes.
OPEN = {"logger.tensorboard.max_queue"}


def test_every_key_of_the_tree_has_a_rule_or_an_annotated_parameter():
    unruled = []
    for option, key, target, _ in arguments_in_conf():
        called = signature(target) if target != "???" else None
        parameter = called.parameters.get(key.rpartition(".")[2]) if called else None
        if key not in RULES and key not in OPEN and (parameter is None or parameter.annotation is Any):
            unruled.append(f"{option}: {key}")
    assert not unruled
    lonely = [
        key for key, _ in flatten(OmegaConf.to_container(composed())) if key.split(".")[0] not in (*groups(), "hydra")
    ]
    assert not set(lonely) - set(RULES)


# The standard names of a file's arrays; the metric's own direction; what Lightning's constructor has.
APART = ("data.keys", "callbacks.checkpoint.mode", "callbacks.early_stopping.mode", "callbacks.early_stopping.patience")


def test_where_yaml_and_constructor_have_a_default_they_agree():
    differing = []
    for option, key, target, value in arguments_in_conf():
        called = signature(target) if target.startswith("cnnlab.") else None
        default = called.parameters[key.rpartition(".")[2]].default if called else REQUIRED
        default = list(default) if isinstance(default, tuple) else default
        name = key.rpartition(".")[2]
        values = [
            other for _, place, cls, other in arguments_in_conf() if (place.rpartition(".")[2], cls) == (name, target)
        ]
        is_reference = isinstance(value, str) and "${" in value
        if default in (REQUIRED, COMPUTED) or is_reference or key in APART:
            continue
        if default in values and values[0] != values[-1]:
            continue  # of several options of one class each says something else
        if value != default:
            differing.append(f"{option}: {key} is {value}, {target} has {default}")
    assert not differing


OWN = """
import torch  # must not be imported by the check
from collections.abc import Sequence
from typing import Literal
from cnnlab.bounds import Share
from cnnlab.optimizer import Muon
raise SystemExit("imported")

Sizes = int | Sequence[int]

class Base:
    def __init__(self, share: Share, mode: Literal["luma", "mean"] = "mean", sizes: Sizes = 3) -> None: ...

class Grey(Base):
    pass

class Open(Base):
    def __init__(self, *, depth: "int | None" = None, **kwargs): ...
"""


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ("{_target_: own.Grey, share: 2}", ".share must be a number of at least 0 and of at most 1, got 2"),
        (
            "{_target_: own.Grey, share: 0.5, mode: lum}",
            ".mode must be one of luma, mean; got lum; did you mean luma?",
        ),
        (
            "{_target_: own.Grey, sizes: [1, x]}",
            ".sizes must be a whole number, or a list of values, each a whole number; got [1, x]",
        ),
        (
            "{_target_: own.Grey, shares: 1}",
            ".shares is no argument of own.Grey; did you mean augment.grey.share?",
        ),
        ("{_target_: own.Open, depth: 1.5}", ".depth must be a whole number, or null; got 1.5"),
        ("{_target_: own.Open, anything: 1}", None),
        ("{_target_: own.Grey, share: 1, sizes: [1, 2]}", None),
        ("{_target_: own.Missing, anything: 1}", None),
    ],
)
def test_arguments_of_a_users_class_are_checked_without_importing_it(tmp_path, monkeypatch, settings, line):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    argv = ["augment=flip_crop", f"+augment.grey={settings}"]
    if line is None:
        preflight(argv)
    else:
        (answer,) = mistakes(*argv)
        assert answer.startswith(f"augment.grey{line}")


def test_an_argument_that_the_class_does_not_take_is_told_with_where_it_comes_from():
    (line,) = mistakes("experiment=quickstart", "schedule=constant")
    assert line == (
        "schedule.warmup is no argument of cnnlab.schedule.Constant, but experiment=quickstart sets it: take it out by "
        "~schedule.warmup"
    )
    preflight(["experiment=quickstart", "schedule=constant", "~schedule.warmup"])
    lines = mistakes("model=custom", "model._target_=tests.test_dashboard.Frozen", "model.width=64")
    assert lines == [
        "model.width is no key of this config; an argument of a class of your own is added by a plus: +model.width="
    ]
    (line,) = mistakes("+model.width=3")
    assert line.startswith("model.width is no argument of cnnlab.model.ConvNet, which takes in_channels")
    assert line.endswith("take it out by ~model.width")


@pytest.mark.parametrize(
    "optimizer",
    ["torch.optim.Adam", "torch.optim.SGD", "torch.optim.Rprop", "torch.optim.NAdam", "torch.optim.Adafactor"],
)
def test_signature_read_from_source_is_that_of_the_class(optimizer):
    expected = inspect.signature(trust.import_target(optimizer)).parameters
    called = signature(optimizer)
    assert called is not None
    assert list(called.parameters) == list(expected)


def test_signatures_read_from_source_are_those_of_the_tree_s_classes():
    for target in sorted({target for _, _, target, _ in arguments_in_conf()} - {"???"}):
        if "Wandb" in target or "MLFlow" in target:
            continue  # packages that may be missing
        expected = dict(inspect.signature(trust.import_target(target)).parameters)
        is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in expected.values())
        named = [name for name, parameter in expected.items() if parameter.kind not in (2, 4)]
        called = signature(target)
        assert called is not None
        assert list(called.parameters) == named, target
        assert called.is_open == is_open, target


# --- metrics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["objective.metric=val_acc"], "did you mean val/accuracy?"),
        (["objective.metric=val/acuracy"], "did you mean val/accuracy?"),
        (["objective.metric=val/kappa"], "is none of the metrics that this run measures"),
        (["objective.mode=min"], "objective.mode=min contradicts val/accuracy, of which more is better"),
        (["objective.metric=val/loss", "objective.mode=max"], "contradicts val/loss, of which less is better"),
        (["objective.metric=val/calibration_error", "objective.mode=max"], "of which less is better"),
        (["callbacks=[default,early_stopping]", "callbacks.early_stopping.monitor=val/los"], "did you mean val/loss?"),
        (["callbacks=[default,early_stopping]", "callbacks.early_stopping.mode=min"], "contradicts val/accuracy"),
        (["data.val_size=0", "objective.metric=val/loss"], "data.val_size=0 leaves no validation: hold images out"),
        (["trainer.limit_val_batches=0", "search=tpe"], "trainer.limit_val_batches=0 leaves no validation"),
        (["objective.metric=test/accuracy", "callbacks=[default,early_stopping]"], "measured once, after training"),
        (["schedule=plateau", "schedule.monitor=val/macrof1"], "did you mean val/macro_f1?"),
        (["+metrics.mine._target_=my.Metric", "objective.metric=val/mine"], "objective.mode must be max or min"),
        (["search=tpe", "objective.metric=val/acc"], "did you mean val/accuracy?"),
    ],
)
def test_a_metric_that_will_not_be_measured_is_answered_before_the_run(argv, part):
    assert any(part in line for line in mistakes(*argv))


@pytest.mark.parametrize(
    "argv",
    [
        ["objective.metric=train/loss", "data.val_size=0"],
        ["data.val_size=0"],  # nobody chose the objective: the last state is the best
        ["objective.metric=val/calibration_error", "callbacks=[default,early_stopping]"],
        ["metrics=[default,kappa]", "objective.metric=val/kappa", "objective.mode=max"],
        ["+metrics.mine._target_=my.Metric", "objective.metric=val/mine", "objective.mode=min"],
        ["classifier._target_=my.Classifier", "objective.metric=val/anything", "objective.mode=min"],
        ["+metrics.auroc._target_=torchmetrics.classification.MulticlassAUROC", "objective.metric=val/auroc"],
    ],
    ids=" ".join,
)
def test_every_metric_that_a_run_measures_may_be_the_objective(argv):
    preflight(argv)


def test_the_direction_is_that_of_torchmetrics_class():
    for option in options("metrics"):
        for name, node in content("metrics", option).items():
            higher = trust.import_target(node["_target_"]).higher_is_better
            assert own_direction(f"val/{name}", {"metrics": {name: node}}) == ("max" if higher else "min")


# --- places ----------------------------------------------------------------------------------------------


def test_a_path_below_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.npz").write_bytes(b"")
    preflight(["data=npz", "data.path=~/x.npz"], verify_presence=True)
    with pytest.raises(DataError, match="does not exist"):
        preflight(["data=npz", "data.path=~/y.npz"], verify_presence=True)


def test_a_run_is_resumed_from_another_folder_with_the_data_that_it_had(tmp_path, monkeypatch):
    folder = record_run(tmp_path / "run", "data=npz", "data.path=x.npz")
    (folder / "run.json").write_text(json.dumps({"status": "interrupted", "cwd": str(tmp_path)}))
    (tmp_path / "x.npz").write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert value_of("data.path", preflight([f"resume={folder}"], verify_presence=True)) == str(tmp_path / "x.npz")
    assert value_of("data.path", preflight([f"resume={folder}", "data.path=y.npz"])) == "y.npz"
    monkeypatch.chdir(tmp_path)
    assert value_of("data.path", preflight([f"resume={folder}"])) == "x.npz"


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["hydra.job.chdir=true"], "a run stays in the folder that it was started in"),
        (["-m", "experiment=null,quickstart"], "Hydra cannot choose nothing; leave experiment out"),
        (["data.classes=[" + ",".join(f"c{index}" for index in range(20_000)) + "]"], "more than 2000 values"),
    ],
)
def test_what_hydra_cannot_do_is_answered_with_what_to_do(argv, part):
    (line,) = mistakes(*argv)
    assert part in line


@pytest.mark.parametrize("name", ["plain", "a b", "it's [x]", "x=1,2"])
def test_the_printed_resume_command_can_be_pasted(tmp_path, monkeypatch, name):
    folder = record_run(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/my code")
    words = shlex.split(resume_command(folder))
    assert words[0] == "PYTHONPATH=/my code"
    assert value_of("resume", preflight(words[3:])) == str(folder)


@pytest.mark.parametrize(
    "lines",
    [
        ["objective.metric=val/loss"],
        ["callbacks=[default,early_stopping]", "callbacks.early_stopping.monitor=val/loss"],
        ["data=npz", "data.path=x.npz", "data.classes=[a/b,../e]"],
        ["data.keys.train_images=a/b"],
    ],
)
def test_a_run_is_resumable_whatever_its_settings_hold(tmp_path, lines):
    preflight([f"resume={record_run(tmp_path / 'run', *lines)}"])


@pytest.mark.parametrize(
    "line",
    [
        "logger.tensorboard.version=$HOME", "logger.tensorboard.name='~'",
        "logger=wandb", "logger=[tensorboard,mlflow]", "callbacks.early_stopping.monitor=${oc.env:HOME}",
    ],
)  # fmt: skip
def test_a_folder_may_not_choose_where_a_resumed_run_writes_or_sends(tmp_path, line):
    choice = ["callbacks=[default,early_stopping]"] if "early" in line else []
    with pytest.raises(UnsafeError, match=line.partition("=")[0].replace(".", r"\.")):
        preflight([f"resume={record_run(tmp_path / 'run', *choice, line)}"])

"""What a run reports is so: runs of random options, each killed at a random place and resumed."""

import json
import math
import random
import shlex
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cnnlab.objective import objective_of
from tests.conftest import read
from tests.prove.child import Child, announce, run
from tests.prove.resume import compare, data, outcome
from tests.prove.table import Row, expect

BATCHES = 10  # of an epoch
BASE = [
    "data=npz", "data.batch_size=32", "data.eval_batch_size=50", "callbacks.figures=null", "callbacks.dashboard=null",
]  # fmt: skip


def draw(chance: random.Random) -> dict[str, list[str]]:
    """Draw the settings of a run, a list of overrides for each kind."""
    pick = chance.choice
    validated = chance.random() < 0.8
    early = ["early_stopping"] if chance.random() < 0.3 else []
    extra = [name for name in ("ema", "lookahead") if chance.random() < 0.3]
    callbacks = [f"callbacks=[{','.join(['default', *extra, *early])}]"]
    if early:
        callbacks += [f"callbacks.early_stopping.patience={pick([1, 2])}", "callbacks.early_stopping.min_delta=0.05"]
    if chance.random() < 0.15 and "ema" not in extra:
        callbacks += ["+callbacks.average._target_=pytorch_lightning.callbacks.EMAWeightAveraging",
                      "+callbacks.average.decay=0.9"]  # fmt: skip
    if chance.random() < 0.15:
        callbacks += ["+callbacks.second={_target_: pytorch_lightning.callbacks.ModelCheckpoint, save_last: true}"]
    rhythms = [
        [], [], ["trainer.check_val_every_n_epoch=2"], ["trainer.check_val_every_n_epoch=3"],
        ["trainer.val_check_interval=0.5"], ["trainer.val_check_interval=4"],
        ["trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=7"],
    ]  # fmt: skip
    objectives = [["val/accuracy", "max"], ["val/loss", "min"], ["train/loss", "min"], ["train/accuracy", "max"]]
    metric, mode = pick(objectives if validated else objectives[2:])
    limits = [
        ["trainer.max_epochs=4"], ["trainer.max_epochs=3"], ["trainer.max_epochs=4", "trainer.max_steps=1000"],
        ["trainer.max_epochs=-1", "trainer.max_steps=STEPS"], ["trainer.max_epochs=9", "trainer.max_steps=STEPS"],
        ["trainer.max_epochs=3", "trainer.limit_train_batches=7"], ["trainer.max_epochs=3", "trainer.min_steps=25"],
        ["trainer.max_epochs=3", "trainer.limit_train_batches=0.5"],
        ["trainer.max_epochs=3", "trainer.max_time='00:01:00:00'"],
        ["trainer.max_epochs=4", "trainer.min_epochs=3"],
    ]  # fmt: skip
    accumulate = pick([1, 1, 2, 3])
    per_epoch = math.ceil(BATCHES / accumulate)
    steps = pick([per_epoch, 2 * per_epoch, 3 * per_epoch, per_epoch + 1, 2 * per_epoch + 2, 3 * per_epoch - 1])
    return {
        "callbacks": callbacks,
        "rhythm": pick(rhythms) if validated else [],
        "precision": [f"trainer.precision={pick(['32-true', '32-true', '64-true', 'bf16-true', 'bf16-mixed'])}"],
        "accumulation": [f"trainer.accumulate_grad_batches={accumulate}"],
        "data": [f"data.val_size={80 if validated else 0}", f"augment={pick(['none', 'flip_crop'])}"],
        "objective": [f"objective.metric={metric}", *([f"objective.mode={mode}"] if chance.random() < 0.5 else [])],
        "schedule": [f"schedule={pick(['constant', 'cosine', 'onecycle', 'step'])}"],
        "optimizer": [*pick([["optimizer=sgd"], ["optimizer=adam"], ["optimizer=muon"]]), "model.dropout=0.2"],
        "limits": [each.replace("STEPS", str(steps)) for each in pick(limits)],
    }


def prove(folder: Path, draws: int, seed: int = 0) -> Iterator[Row]:
    """Draw so many runs and check what each reports."""
    chance = random.Random(seed)
    path = data(folder, 400)
    differing: list[str] = []
    killed: Counter[str] = Counter()
    checks: Counter[str] = Counter()
    for number in range(draws):
        settings = draw(chance)
        options = [*BASE, f"data.path='{path}'", *(each for group in settings.values() for each in group)]
        try:
            whole = folder / f"{number}-whole"
            code, text = run([*options, f"hydra.run.dir='{whole}'"], folder / "whole.txt")
            expect(code == 0, f"the run that is left alone ended with {code}: {text[-1500:]}")
            victim = folder / f"{number}-killed"
            place = kill(options, victim, folder / "killed.txt", chance)
            killed[place] += 1
            differences = compare(everything(whole), everything(victim))
            expect(not differences, f"killed at {place}: {differences}")
            checks["killed and resumed: the same bits, files and metrics"] += 1
            for name, check in CHECKS.items():
                check(victim, folder)
                checks[name] += 1
            if number % 3 == 0:
                repeat(whole, folder)
                checks["the recorded command repeats the result"] += 1
        except Exception as error:
            differing.append(f"draw {number} of seed {seed}: {error}\n    {shlex.join(options)}")
            print(differing[-1], flush=True)
    for name, count in checks.items():
        tried = len(range(0, draws, 3)) if "command" in name else draws
        yield Row(name, tried, count)
    places = ", ".join(f"{count} {place}" for place, count in sorted(killed.items()))
    yield Row("runs drawn, none differing", draws, draws - len(differing), f"killed: {places}")


PLACES = {"t": "in a step", "c": "in a save", "v": "in a validation", "n": "after an epoch", "e": "in the test"}


def kill(options: Sequence[str], victim: Path, output: Path, chance: random.Random) -> str:
    """Start a run, kill it once or twice at a place of chance, and resume it to its end; return the first place."""
    first = ""
    arguments = [*options, f"hydra.run.dir='{victim}'"]
    for _ in range(chance.choice([1, 1, 2])):
        place, times = chance.choice("tttcvne"), chance.randint(1, 4)
        times = chance.randint(1, 35) if place == "t" else 1 if place == "e" else times
        child = Child(arguments, output, announce)
        child.reach(place, times)
        signum = chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        child.kill(signum)
        code = child.wait()
        expect(code in (0, -signum, 128 + signum), f"{signal.Signals(signum).name} {PLACES[place]} ended with {code}")
        first = first or (PLACES[place] if code else "at its end")
        if (victim / ".hydra" / "overrides.yaml").is_file():
            arguments = [f"resume='{victim}'", "trusted=[pytorch_lightning]"]
    code, text = run(arguments, output)
    expect(code == 0, f"the resumed run ended with {code}: {text[-1500:]}")
    return first


def everything(folder: Path) -> dict[str, Any]:
    """Return all that a run ended with, but for what the clock says and where Lightning's loops stand."""
    content = outcome(folder)
    content["state"].pop("loops")
    content["config"]["config"].pop("trusted")
    content["state"]["callbacks"].pop("Timer", None)
    for name in [name for name in content["state"]["callbacks"] if name.startswith("ModelCheckpoint")]:
        content["state"]["callbacks"].pop(name)  # which names the folder
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    return content | {"best weights": best["state_dict"], "best": read(folder / "run.json")["best"]}


def check_evaluation(folder: Path, work: Path) -> None:
    """Check that `evaluate` says what the training's own test said, to the last digit."""

    def evaluated() -> None:
        from cnnlab.evaluation import evaluate

        content = evaluate(str(folder), figures=False).content
        (work / "evaluated.json").write_text(json.dumps(content["metrics"]))

    expect(Child([], work / "evaluate.txt", call=evaluated).wait() == 0, (work / "evaluate.txt").read_text()[-1500:])
    tested = {name[5:]: value for name, value in read(folder / "metrics.json").items() if name.startswith("test/")}
    expect(read(work / "evaluated.json") == tested, f"evaluate: {read(work / 'evaluated.json')}, test: {tested}")


def check_best(folder: Path, work: Path) -> None:
    """Check that the best state is the best of the history under the objective, and what run.json and metrics say."""
    history = [{name: float(row[name] or "nan") for name in row} for row in rows_of(folder)]
    best, config = read(folder / "run.json")["best"], read_config(folder)
    objective = objective_of(config)
    metric, sign = objective["metric"], 1 if objective["mode"] == "max" else -1
    measured = [row for row in history if math.isfinite(row[metric])]
    metrics = read(folder / "metrics.json")
    if not measured:
        expect((best["value"], best["epoch"]) == (None, history[-1]["epoch"]), f"unmeasured, yet best is {best}")
        return
    expect(metrics["objective"] == best["value"] == metrics[metric], f"objective {metrics['objective']}, best {best}")
    inside = config["trainer"]["val_check_interval"] is not None and metric.startswith("val/")
    top = max(sign * row[metric] for row in measured)
    if inside:  # the history has the last validation of each epoch only
        expect(sign * best["value"] >= top - 1e-7, f"best {best}, but the history reaches {top}")
        return
    ties = [row for row in measured if sign * row[metric] == top]
    if metric.startswith("val/"):
        lowest = min(row["val/loss"] for row in ties)
        ties = [row for row in ties if row["val/loss"] == lowest]
    expect(best["epoch"] == ties[-1]["epoch"], f"best {best}, but the history has {ties}")


def check_history(folder: Path, work: Path) -> None:
    """Check that each epoch has one row, and TensorBoard the same values, a loss for each step among them."""
    history = rows_of(folder)
    epochs = [int(row["epoch"]) for row in history]
    expect(epochs == list(range(len(epochs))), f"the history has the epochs {epochs}")
    losses = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["History"]["losses"]
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    steps = {event.step: event.value for event in board.Scalars("train/loss")}
    expect(steps == dict(enumerate(losses.tolist())), "TensorBoard has other losses than the checkpoint")
    for tag, column in (("val/loss", "val/loss"), ("val/accuracy", "val/accuracy"), ("train/loss_epoch", "train/loss")):
        rows = {int(row["epoch"]): torch.tensor(float(row[column])).item() for row in history if row[column]}
        events = board.Scalars(tag) if tag in board.Tags()["scalars"] else []
        expect(rows == {event.step: event.value for event in events}, f"TensorBoard has another {tag} than the history")


CHECKS = {
    "metrics.json is what evaluate says": check_evaluation,
    "best.ckpt is the best of the history": check_best,
    "each epoch once, TensorBoard the same": check_history,
}


def repeat(whole: Path, folder: Path) -> None:
    """Check that the command in a run's record gives the same metrics again."""
    again = folder / "again"
    words = [word for word in shlex.split(read(whole / "run.json")["command"]) if "hydra.run.dir" not in word]
    start = next(at for at, word in enumerate(words) if word.endswith("train.py") or word == "train") + 1
    code, text = run([*words[start:], f"hydra.run.dir='{again}'"], folder / "again.txt")
    expect(code == 0, f"the recorded command ended with {code}: {text[-1500:]}")
    difference = compare(read(whole / "metrics.json"), read(again / "metrics.json"))
    expect(not difference, f"the recorded command gave other metrics: {difference}")
    import shutil

    shutil.rmtree(again)


def rows_of(folder: Path) -> list[dict[str, str]]:
    """Return the rows of history.csv."""
    from tests.prove.resume import rows

    return rows(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a run's config as its checkpoint has it."""
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]["config"]

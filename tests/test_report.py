"""The report: one file that needs nothing else, says what happened, and runs nobody's code."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import html5lib
import numpy as np
import pytest
import torch
from PIL import Image

from cnnlab import report, wording
from cnnlab.answers import read_evaluation
from cnnlab.checkpoint import write_checkpoint
from cnnlab.commands.report import report as command
from cnnlab.errors import ConfigError, MachineError, PartialError, UnsafeError
from cnnlab.evaluation import evaluate
from cnnlab.record import Record
from cnnlab.report import chart, page
from tests.conftest import ROOT, Train, drawn, read

EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>"


def parsed(path: Path) -> str:
    """Return a page, once it is known to be valid HTML that refers to nothing outside."""
    content = path.read_text(encoding="utf-8")
    tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(content)
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in tree.iter():
        assert element.tag not in ("script", "link", "iframe", "object", "embed", "base", "form"), element.tag
        for name, value in element.attrib.items():
            assert not str(name).startswith("on"), name
            if name in ("src", "href", "srcset", "poster", "data", "action", "xlink:href"):
                assert value.startswith("data:image/png;base64,") or (value[0] == "#" and value[1:] in ids), value[:80]
            assert "url(" not in value
        if element.tag == "img":
            assert element.get("alt")
    style = content.partition("<style>")[2].partition("</style>")[0]
    assert "--ground" in style
    assert "url(" not in style
    assert "@import" not in style
    return content


def words(content: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", content))


def test_the_page_of_a_run_says_what_it_is_asked_for(train: Train, tmp_path: Path):
    run = train("augment=flip_crop", "optimizer.lr=0.02")
    path = report.report_run(str(run)).path
    assert path == run / "report.html"
    content = parsed(path)
    said = words(content)
    for heading in (
        "Result", "Curves", "Mistakes", "Classes", "Confusion matrix", "Calibration", "First test images",
        "Learned filters", "What ran", "The same again", "Throughput", "Environment", "Config",
    ):  # fmt: skip
        assert f"<h2>{heading}</h2>" in content
    metrics = read(run / "metrics.json")
    accuracy = f"{metrics['test/accuracy']:.2%}"
    assert f"<h1>lenet on small: {accuracy} of the test images right" in content
    assert f"Right on {accuracy} of 100 test images" in said
    assert wording.format_metric("loss", metrics["test/loss"]) in said
    assert wording.format_metric("loss", metrics["val/loss"]) in said
    assert "320 for training, 80 for validation, 100 for test; 32 × 32 pixels, 3 channels; 10 classes" in said
    row = r'<th scope="row">\d+</th><td class="number">\d+</td>\s*<td class="number">'
    bar = row + r'<span class="bar"><i style="width: ([\d.]+)%'
    shares = [float(share) for share in re.findall(bar, content)]
    assert len(shares) == 10
    assert shares == sorted(shares), "the worst class first"
    assert "augment=flip_crop" in said
    assert "hydra.run.dir" not in words(content.partition('id="the-same-again"')[2].partition("</section>")[0])
    assert torch.__version__ in said
    assert "prefers-color-scheme: dark" in content
    assert "@media print" in content
    confusion = read(run / "evaluation.json")["confusion"]
    cells = content.partition('class="matrix"')[2].partition("</table>")[0]
    assert [int(cell) for cell in re.findall(r"<td[^>]*>(\d+)</td>", cells)] == np.array(confusion).ravel().tolist()


def test_runs_that_were_evaluated_are_looked_at_without_torch(train: Train, tmp_path: Path):
    """The page is the same to the letter as the one that evaluating made."""
    pair = [str(train(f"seed={seed}", "trainer.max_epochs=1", folder=tmp_path / str(seed))) for seed in (0, 1)]
    pages = [report.report_run(run).path for run in pair]
    before = [page.read_bytes() for page in pages]
    code = """
import contextlib, sys
from cnnlab.cli import app
first, second, folder = sys.argv[1:]
for words in (["report", first], ["report", second], ["compare", first, second], ["runs", folder]):
    with contextlib.suppress(SystemExit):
        app(words)
print([name for name in ("torch", "pytorch_lightning", "onnx", "sympy") if name in sys.modules])
"""
    words = [sys.executable, "-c", code, *pair, str(tmp_path)]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
    assert "McNemar" in run.stdout
    assert [page.read_bytes() for page in pages] == before


def test_a_run_that_measures_other_things_is_evaluated_and_reported_too(train: Train):
    run = train("metrics=[kappa]", "objective.metric=val/kappa", "trainer.max_epochs=1")
    said = words(parsed(report.report_run(str(run)).path))
    metrics = read(run / "evaluation.json")["metrics"]
    assert set(metrics) == {"accuracy", "calibration_error", "kappa", "loss"}
    assert f"{metrics['accuracy']:.2%} test accuracy" in said


@pytest.mark.parametrize(
    "damage",
    [{"classes": ["a"]}, {"count": 3}, {"shown": {}}, {"mistakes": [{"index": 0}]}, {"confusion": [[1]]},
     {"per_class": []}, {"accuracy_interval": [0.1]}, {"metrics": {}}, {"predicted": 99}],
)  # fmt: skip
def test_an_evaluation_whose_parts_do_not_fit_is_made_again(trained: Path, tmp_path: Path, damage: dict):
    run = shutil.copytree(trained, tmp_path / "run")
    good = evaluate(str(run), figures=False)
    path = run / "evaluation.json"
    answers = path.with_suffix(".npz").read_bytes()
    if "predicted" in damage:
        np.savez(path.with_suffix(".npz"), allow_pickle=False, **good.arrays | {"predicted": good.predicted + 99})
    else:
        path.write_text(json.dumps(good.content | damage))
    record = Record(run)
    assert read_evaluation(record, record.best) is None
    path.write_text(json.dumps(good.content))
    path.with_suffix(".npz").write_bytes(answers)
    assert read_evaluation(record, record.best) is not None


def test_a_strangers_words_do_nothing(train: Train, npz: Path, tmp_path: Path):
    evil = tmp_path / "evil.npz"
    with np.load(npz) as arrays:
        names = np.array([f"{EVIL}{label}\x00\x1b" if label else "\ud800odd" for label in range(10)], dtype=object)
        np.savez(evil, **dict(arrays))
    run = train(f"data.path='{evil}'", "trainer.max_epochs=1")
    for checkpoint in (run / "checkpoints").glob("*.ckpt"):
        content = torch.load(checkpoint, weights_only=True)
        content["hyper_parameters"]["classes"] = names.tolist()
        content["hyper_parameters"]["config"]["data"]["classes"] = names.tolist()
        write_checkpoint(content, checkpoint)
    record = read(run / "run.json")
    record |= {
        "command": EVIL,
        "device": EVIL,
        "versions": {EVIL: EVIL},
        "git": {"commit": EVIL, "dirty": True},
        "started": EVIL,
    }
    (run / "run.json").write_text(json.dumps(record))
    config = run / ".hydra" / "config.yaml"
    config.write_text(config.read_text() + f"evil: {json.dumps(EVIL)}\n")
    (run / ".hydra" / "overrides.yaml").write_text(f"- {json.dumps(f'+a={EVIL}')}\n")
    folder = run.rename(tmp_path / "<script>alert(2)<")
    content = parsed(report.report_run(str(folder)).path)
    assert "Confusion matrix" in content
    assert "&lt;script&gt;alert(1)" in content
    assert "<script" not in content
    assert "onerror=alert" not in re.sub(r"&lt;img src=x onerror=alert\(1\)&gt;", "", content)


def test_a_strangers_network_is_refused_and_no_page_written(train: Train):
    run = train("trainer.max_epochs=1")
    path = run / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["config"]["model"]["_target_"] = "subprocess.check_output"
    write_checkpoint(content, path)
    with pytest.raises(UnsafeError, match="check_output"):
        command(str(run))
    assert not (run / "report.html").exists()


def test_a_run_without_checkpoint_or_data_has_a_page_too(train: Train, npz: Path, tmp_path: Path):
    copy = tmp_path / "copy.npz"
    shutil.copy(npz, copy)
    run = train(f"data.path='{copy}'", "trainer.max_epochs=1")
    copy.unlink()
    with pytest.raises(PartialError, match=r"lacks the evaluation: .*copy.npz"):
        command(str(run))
    said = words(parsed(run / "report.html"))
    assert "Not evaluated" in said
    assert "Learned filters" in said
    command(str(run), data=npz)
    assert "Not evaluated" not in words(parsed(run / "report.html"))

    shutil.rmtree(run / "checkpoints")
    for name in ("metrics.json", "history.csv"):
        (run / name).unlink()
    (run / "run.json").write_text(json.dumps({"status": "failed", "error": "out of memory"}))
    command(str(run), output=tmp_path / "failed.html")
    said = words(parsed(tmp_path / "failed.html"))
    assert "Failed: out of memory" in said
    assert "Confusion matrix" not in said


def test_a_hundred_classes_make_a_picture_of_the_matrix(train: Train, tmp_path: Path):
    many = tmp_path / "many.npz"
    (images, _), (test, _) = drawn(400, 10, 0), drawn(100, 10, 1)
    np.savez(many, X_train=images, y_train=np.arange(400) % 100, X_test=test, y_test=np.arange(100))
    run = train(f"data.path='{many}'", "trainer.max_epochs=1", "data.val_size=0", "objective.metric=test/accuracy")
    content = parsed(report.report_run(str(run)).path)
    assert "The commonest confusions" in content
    assert 'class="matrix"' not in content
    assert "top5 accuracy" in content
    assert content.count('text-anchor="end">99</text>') == 2, "each class is named at its row and at its column"
    assert "80 better ones" in content


def write_sweep(folder: Path, objectives: dict[str, list[float]]) -> None:
    """Write what a sweep leaves: settings of a learning rate, each with its seeds' objectives; a failure."""
    (folder / "figures").mkdir(parents=True)
    Image.new("RGB", (400, 300), "white").save(folder / "figures" / "trials.png")
    trials: list[dict] = [
        {"name": f"{place}_{seed}", "settings": {"optimizer.lr": lr, "seed": str(seed), EVIL: "1"},
         "status": "completed", "error": None, "objective": value, "metrics": {"test/accuracy": value}, "epochs": 1,
         "seconds": 3.0, "images_per_second": 1000.0}
        for place, (lr, values) in enumerate(objectives.items()) for seed, value in enumerate(values)
    ]  # fmt: skip
    for trial in trials:
        (folder / trial["name"]).mkdir()
        (folder / trial["name"] / "history.csv").write_text(f"epoch,val/accuracy\n0,{trial['objective']}\n")
    failed = trials[0] | {"name": "failed", "settings": {"optimizer.lr": EVIL}, "status": "failed", "error": EVIL}
    trials.append(failed | {"objective": None, "metrics": {}})
    groups = [
        {"settings": {"optimizer.lr": lr}, "n": len(values), "mean": sum(values) / len(values), "sd": 0.01,
         "interval_95": [0.6, 0.8] if len(values) > 1 else None, "test/accuracy": values[0],
         "trials": [f"{place}_{seed}" for seed in range(len(values))]}
        for place, (lr, values) in enumerate(objectives.items())
    ]  # fmt: skip
    content = {"command": EVIL, "objective": {"metric": "val/accuracy", "mode": "max"}, "winner": "train.py a=1 <b>",
               "counts": {"completed": len(trials) - 1, "failed": 1}, "groups": groups, "trials": trials}  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(content))


def test_the_page_of_a_sweep_says_what_is_best_and_whether_that_is_so(tmp_path: Path):
    folder = tmp_path / "sweep"
    write_sweep(folder, {"0.123456789012": [0.7, 0.71, 0.69], "0.01": [0.5, 0.51, 0.49]})
    summary = read(folder / "sweep.json")
    summary |= {"lead": f"more than chance {EVIL}", "importance": {EVIL: 0.2, "optimizer.lr": 0.8}}
    (folder / "sweep.json").write_text(json.dumps(summary))
    content = parsed(report.report_sweep(folder).path)
    said = words(content)
    assert "Best: optimizer.lr 0.1235. val/accuracy is 70.00% on average over 3 runs" in said
    assert "Is its lead more than chance? More than chance &lt;script" in said
    assert "optimizer.lr mattered most, with 80%" in said
    assert "train.py a=1 &lt;b&gt;" in said
    assert "0.123456789012" not in said, "the table file has all digits"
    assert said.count("★ 0.1235") == 4, "the best settings, and each of their trials"
    assert content.count("data:image/png") == 1
    assert content.count('<circle class="dots-pale"') == 3, "trials of one epoch can be seen"
    assert content.count('<circle class="dots-a"') == 3
    shutil.rmtree(folder)
    write_sweep(folder, {"0.1": [0.5, 0.7], "0.2": [0.7, 0.5], "0.3": [0.5, 0.5]})
    said = words(parsed(report.report_sweep(folder).path))
    assert "2 settings are equally good" in said
    assert said.count("★ 0.1") == said.count("★ 0.2") == 3
    assert "★ 0.3" not in said
    (folder / "sweep.json").write_text("{}")
    with pytest.raises(ConfigError, match="missing or damaged"):
        report.report_sweep(folder)


def test_what_cannot_be_written_or_is_no_run_is_told(train: Train, tmp_path: Path):
    run = train("trainer.max_epochs=1")
    with pytest.raises(MachineError, match="cannot write"):
        command(str(run), output=run / "run.json" / "report.html")
    with pytest.raises(ConfigError, match="RUN must be"):
        command(str(tmp_path / "nowhere"))
    shutil.move(run / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    with pytest.raises(ConfigError, match="stands alone"):
        command(str(tmp_path / "alone.ckpt"))


def test_whatever_stands_in_any_place_of_a_page_is_text():
    sections = {
        "Result": {"answer": [EVIL], "tiles": [(EVIL, EVIL)]}, "The best again": EVIL,
        "What mattered": [(EVIL, 0.5)],
        "Trials": {"header": [EVIL], "rows": [[EVIL, EVIL, 1]], "words": 1, "best": [0]},
        "Curves": [chart.draw(EVIL, [chart.Line(EVIL, [0, 1], [0, 1]), chart.Line("b", [0], [1])], EVIL)],
        "Pictures": [{"source": EVIL, "alternative": EVIL}], "What ran": "a\x00b\ud800",
    }  # fmt: skip
    content = page.render(
        "sweep.html", kind=EVIL, title=EVIL, subtitle=EVIL, badge={"word": EVIL, "style": EVIL}, sections=sections
    )
    assert "a�b�" in content
    assert "<script" not in content
    assert "<img src=x" not in content
    for element in html5lib.parse(content, namespaceHTMLElements=False).iter():
        assert element.tag != "script"
        assert not any(str(name).startswith("on") for name in element.attrib), element.attrib


def test_templates_switch_escaping_off_nowhere_and_quote_every_attribute():
    templates = sorted((Path(page.__file__).parent / "templates").glob("*.html"))
    assert templates
    for template in templates:
        text = template.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe|Markup|autoescape", text), template
        assert not re.search(r"=\s*\{\{", text), template


@pytest.mark.parametrize("ends", [(0, 1), (0, 0.0003), (-5, 12), (0.2, 0.21), (0, 60_000), (1e-9, 2e-9), (0, 1e7)])
def test_ticks_are_few_and_round_and_inside(ends):
    low, high = ends
    places = chart.ticks(low, high)
    assert 2 <= len(places) <= 6
    assert low - 1e-9 <= places[0] <= places[-1] <= high + 1e-9
    steps = np.diff(places)
    np.testing.assert_allclose(steps, steps[0])
    assert f"{steps[0]:.0e}"[0] in "125"


@pytest.mark.parametrize("high", [0.00018, 0.00042, 0.012, 0.7, 23, 9000, 1.2e7])
def test_the_labels_of_ticks_are_their_values(high: float):
    units = {"k": 1e3, "M": 1e6, "%": 0.01}
    for percent in (False, True):
        drawn_chart = chart.draw("", [chart.Line("", [1, 2], [0, high])], "", percent=percent)
        assert drawn_chart is not None
        (top, _), (bottom, _) = drawn_chart.rows[-1], drawn_chart.rows[0]
        labels = [label.replace(",", "") for _, label in drawn_chart.rows]
        values = [float(label.rstrip("kM%")) * units.get(label[-1], 1) for label in labels]
        shares = [(bottom - place) / (bottom - top) for place, _ in drawn_chart.rows]
        np.testing.assert_allclose(values, np.array(shares) * values[-1], atol=0.003 * values[-1])


def test_a_curve_with_gaps_is_drawn_in_pieces():
    nan = float("nan")
    gaps = chart.draw("Loss", [chart.Line("training", range(6), [1, 2, nan, 3, 4, nan])], "epoch")
    assert gaps is not None
    assert len(gaps.strokes) == 2
    assert chart.draw("Loss", [chart.Line("training", [0], [nan])], "epoch") is None
    assert "nan" not in str(chart.draw("Loss", [chart.Line("training", [3], [0.0])], "epoch"))

"""Whatever the readers of files and command lines are given: a result, or an error of ours."""

import contextlib
import json
import os
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cnnlab import trust
from cnnlab.config import preflight
from cnnlab.config.tree import groups
from cnnlab.data import archive
from cnnlab.errors import CnnlabError, DamagedError, UnsafeError
from cnnlab.files import csv_cell, plain, printable, read_csv, read_json, read_yaml
from cnnlab.record import Record, find_run
from tests.conftest import drawn

# The same examples each time; EXAMPLES=1000 looks for new ones.
EXAMPLES = os.environ.get("EXAMPLES")
quick = settings(
    max_examples=int(EXAMPLES or 30), derandomize=not EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("fuzz") / "x.npz"
    train, test = drawn(8, 4, seed=0), drawn(4, 4, seed=1)
    archive.write(path, train[0][:, :8, :8], train[1], test[0][:, :8, :8], test[1], ["a", "b", "c", "d"])
    return path.read_bytes()


@quick
@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=8), st.booleans()), min_size=1, max_size=4))
def test_an_edited_npz_reads_as_it_was_or_not_at_all(content, edits):
    spoilt = content
    for place, new, insert in edits:
        at = place % (len(spoilt) + 1)
        spoilt = spoilt[:at] + new + spoilt[at if insert else at + len(new) :]
    with tempfile.TemporaryDirectory() as folder:
        good, path = Path(folder) / "good.npz", Path(folder) / "spoilt.npz"
        good.write_bytes(content)
        path.write_bytes(spoilt)
        with contextlib.suppress(CnnlabError):
            found, wanted = archive.read(path), archive.read(good)
            np.testing.assert_array_equal(found.images["train"], wanted.images["train"])
            np.testing.assert_array_equal(found.targets["test"], wanted.targets["test"])


words = st.sampled_from(
    ["seed", "model", "optimizer.lr", "trainer", "data.path", "hydra.run.dir", "+x", "~logger", "??"]
)
values = st.one_of(
    st.text(max_size=12),
    st.floats().map(str),
    st.sampled_from(["[1,2", "{a: b}", "${seed}", "${oc.env:X}", "a,b", "''"]),
)


@quick
@given(lines=st.lists(st.builds("{}={}".format, words | st.sampled_from(sorted(groups())), values), max_size=3))
def test_any_command_line_is_taken_or_refused_in_lines_of_ours(lines):
    said = ""
    try:
        preflight(lines)
    except CnnlabError as error:
        said = str(error)
    assert all(len(line) < 500 for line in said.splitlines())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
files = st.binary(max_size=60) | anything.map(lambda value: json.dumps(value).encode())


@quick
@given(run=files, metrics=files, history=files, config=files, overrides=files)
def test_any_run_folder_is_read_or_named_as_damaged(run, metrics, history, config, overrides):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, text in {
            "run.json": run, "metrics.json": metrics, "history.csv": history, ".hydra/config.yaml": config,
            ".hydra/overrides.yaml": overrides,
        }.items():  # fmt: skip
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(text)
        record = Record(folder)
        for part in ("run", "metrics", "history", "config", "overrides", "status", "objective", "touched"):
            with contextlib.suppress(DamagedError):
                getattr(record, part)
        with pytest.raises(CnnlabError):
            find_run(str(folder))  # it has no checkpoint
        with pytest.raises(CnnlabError):
            preflight([f"resume={folder}", "seed=1"])


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return type(value) is dict and all(type(name) is str and is_plain(inner) for name, inner in value.items())
    if isinstance(value, list):
        return type(value) is list and all(map(is_plain, value))
    return value is None or type(value) in (bool, float, str) or (type(value) is int and -(2**63) <= value < 2**63)


odd = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=4) | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers() | st.none(), inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3).map(OrderedDict)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=12,
)


@quick
@given(value=odd)
def test_a_strangers_settings_are_plain_or_damaged(value):
    with contextlib.suppress(DamagedError):
        assert is_plain(plain(value, "x.ckpt"))


calls = st.sampled_from(["os.system", "builtins.exec", "torch.load", "subprocess.run", "cnnlab.files.write_text"])
hidden = st.recursive(
    calls.map(lambda target: {"_target_": target, "command": "true"}),
    lambda inner: (
        st.tuples(inner)
        | st.tuples(st.integers(-(2**63), 2**63 - 1), inner).map(list)
        | inner.map(lambda value: OrderedDict(k=value))
        | inner.map(lambda value: {"_target_": "torch.nn.Sequential", "_args_": (value,)})
        | inner.map(lambda value: {"_target_": "torch.nn.Linear", "_partial_": True, "in_features": value})
    ),
    max_leaves=4,
)


@quick
@given(value=hidden)
@example(value=[-(2**63), {"_target_": "os.system", "command": "true"}])
def test_no_container_hides_a_call_from_the_builder(value):
    for section in ({"_target_": "cnnlab.model.ConvNet", "extra": value}, value):
        with pytest.raises(UnsafeError, match="none of the classes"):
            trust.build(plain(section, "x.ckpt"), "model")


@quick
@given(content=files | st.text(max_size=60).map(lambda text: text.encode(errors="surrogateescape")))
def test_any_file_is_read_or_named_as_damaged(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(content)
        for read in (read_json, read_csv, read_yaml):
            try:
                read(path)
            except DamagedError as error:
                assert str(path) in str(error)  # noqa: PT017 - it need not be raised


@quick
@given(text=st.text(alphabet=st.characters(codec=None), max_size=30))
def test_no_text_commands_a_terminal_or_a_spreadsheet(text):
    shown = printable(text)
    shown.encode()
    assert not any((ord(letter) < 32 and letter not in "\n\t") or 128 <= ord(letter) < 160 for letter in shown)
    cell = csv_cell(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))

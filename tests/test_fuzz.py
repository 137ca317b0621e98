"""Whatever the readers of files and command lines are given: a result, or an error of ours."""

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnnlab.config import preflight
from cnnlab.config.tree import groups
from cnnlab.data import archive
from cnnlab.errors import CnnlabError, DamagedError
from cnnlab.record import Record, find_run
from tests.conftest import drawn

quick = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


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

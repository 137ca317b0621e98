"""Convolution and pooling: the numbers of the tutorial, and those of PyTorch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cnnlab import tutorial
from cnnlab.errors import ConfigError
from tests.conftest import ROOT


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_convolution_is_what_a_network_computes(padding, stride):
    random = np.random.default_rng(0)
    image, weights = random.normal(size=(11, 8, 3)), random.normal(size=(3, 3))
    planes = torch.from_numpy(image).permute(2, 0, 1)[:, None]
    expected = F.conv2d(planes, torch.from_numpy(weights)[None, None], padding=padding, stride=stride)
    result = tutorial.convolve(image, weights, padding, stride)
    np.testing.assert_allclose(result, expected[:, 0].permute(1, 2, 0).numpy(), atol=1e-12)
    assert result.shape[:2] == tuple(tutorial.compute_output_size(length, 3, padding, stride) for length in (11, 8))


def test_three_by_three_over_six_by_six_gives_four_by_four():
    assert tutorial.convolve(np.ones((6, 6, 1)), tutorial.parse_kernel("blur")).shape == (4, 4, 1)


def test_pooling_is_what_a_network_computes():
    image = np.random.default_rng(0).normal(size=(9, 7, 2))
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    largest, mean = tutorial.pool(image, 2, "max"), tutorial.pool(image, 2, "avg")
    for result, expected in ((largest, F.max_pool2d(planes, 2)), (mean, F.avg_pool2d(planes, 2))):
        np.testing.assert_allclose(result, expected[0].permute(1, 2, 0).numpy(), atol=1e-12)


def test_a_matrix_is_a_kernel():
    np.testing.assert_array_equal(tutorial.parse_kernel("[[0,1,0],[1,-4,1],[0,1,0]]"), tutorial.parse_kernel("edges"))
    assert tutorial.parse_kernel("blur").sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "text",
    [
        "blurr", "[[1,2],[3,4]]", "[[1,2,3]]", "[[1,2,3],[4,5,6],[7,8]]", "[]", "[1,2,3]", "{}", "3", "null",
        '[["a"]]', "[[true]]", "[[NaN]]", "[[1e999]]", "[[" + "9" * 400 + "]]", "[" * 5000,
        str([[0] * 17] * 17),
    ],
)  # fmt: skip
def test_a_wrong_kernel_is_refused_with_the_rule(text):
    with pytest.raises(ConfigError, match=r"--kernel must be blur, edges, sharpen, sobel_x or a square matrix"):
        tutorial.parse_kernel(text)


def test_a_kernel_must_fit():
    with pytest.raises(ConfigError, match="a kernel of 3 pixels does not fit into 2 pixels"):
        tutorial.convolve(np.ones((2, 2, 1)), tutorial.parse_kernel("blur"))
    with pytest.raises(ConfigError, match="--size must be between 1 and 4"):
        tutorial.pool(np.ones((4, 6, 1)), 5, "max")


@pytest.mark.slow
def test_the_notebook_walks_from_a_photograph_to_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    cells = json.loads((ROOT / ".github" / "tutorial.ipynb").read_text())["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec(compile("".join(cell["source"]), "tutorial.ipynb", "exec"), names)
    assert np.mean(names["answers"] == names["targets"]) >= 0.5
    assert names["run"].metrics["test/accuracy"] > 0.5
    assert names["result"].shape[:2] == tuple(length - 2 for length in names["pixels"].shape[:2])

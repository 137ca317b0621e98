"""Weights from elsewhere: by name and shape, with or without a prefix, and nothing but tensors."""

import logging
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from cnnlab.errors import CheckpointError, UnsafeError
from cnnlab.model import ConvNet, normalised
from cnnlab.weights import begin_with


def network(num_classes: int = 10) -> nn.Sequential:
    torch.manual_seed(num_classes)
    body = ConvNet(3, num_classes, (32, 32), channels=[6, 16], kernel_size=5, batch_norm=False, hidden=[120, 84])
    return normalised(body, [0.5] * 3, [0.2] * 3)


def save(weights: dict[str, torch.Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in weights.items()}, path)
    else:
        torch.save(weights, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "body.", "network."])
def test_every_tensor_of_the_same_network_fits(tmp_path: Path, suffix: str, prefix: str):
    trained, new = network(), network()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1)
    weights = {f"{prefix}{name}": value for name, value in trained[1].state_dict().items()}
    begin_with(new, str(save(weights, tmp_path / f"weights{suffix}")), [])
    for name, value in trained.state_dict().items():
        assert torch.equal(new.state_dict()[name], value)


def test_a_head_of_other_shape_stays_new_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    new = network(num_classes=4)
    head = {name: value.clone() for name, value in new.state_dict().items() if value.shape[:1] == (4,)}
    assert head
    path = save({"state_dict": network().state_dict()}, tmp_path / "weights.pth")  # type: ignore[dict-item]
    with caplog.at_level(logging.INFO):
        begin_with(new, str(path), [])
    assert all(torch.equal(new.state_dict()[name], value) for name, value in head.items())
    assert all(name in caplog.text for name in head)


def test_statistics_of_the_images_are_no_weights(tmp_path: Path):
    new = network()
    begin_with(new, str(save({n: v + 1 for n, v in network().state_dict().items()}, tmp_path / "w.pth")), [])
    assert torch.equal(new[0].state_dict()["mean"], network()[0].state_dict()["mean"])


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"no zip file", (CheckpointError, UnsafeError)),
        (pickle.dumps({"weight": Hostile()}, protocol=2), UnsafeError),
        ({"other.weight": torch.zeros(3)}, CheckpointError),
        ([torch.zeros(3)], CheckpointError),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content, error):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(error):
        begin_with(network(), str(path), [])
    assert not (tmp_path / "executed").exists()

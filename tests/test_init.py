"""How weights begin."""

import pytest
import torch
from torch import nn

from cnnlab.errors import ConfigError
from cnnlab.init import Dirac, Whiten, patches, whitening
from cnnlab.model import ConvNet, SpeedNet
from tests.conftest import Train, read


def smooth_images(count: int = 300) -> torch.Tensor:
    """Images whose neighbouring pixels and channels go together, as photographs' do."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 3, 16, 16, generator=generator)
    return nn.functional.avg_pool2d(noise, 3, stride=1) + noise.mean(1, keepdim=True)[:, :, 1:-1, 1:-1]


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_whitening_makes_the_covariance_of_patches_the_identity(kernel: int):
    images = smooth_images().double()
    conv = nn.Conv2d(3, 2 * 3 * kernel**2, kernel, dtype=torch.float64)
    before = torch.cov(patches(images, conv).T)
    assert (before - torch.diag(before.diagonal())).abs().max() > 0.1
    Whiten(eps=0)(conv, images)
    outputs = conv(images).transpose(0, 1).flatten(1)
    half = len(outputs) // 2
    torch.testing.assert_close(torch.cov(outputs[:half]), torch.eye(half, dtype=torch.float64))
    torch.testing.assert_close(outputs[half:], -outputs[:half])


def test_eps_bounds_the_weakest_directions():
    rank_one = torch.randn(500, 1, generator=torch.Generator().manual_seed(0)) * torch.ones(1, 4)
    assert whitening(rank_one, eps=1e-2).norm(dim=1).max() == pytest.approx(10, rel=1e-3)


def test_strongest_direction_comes_first_and_further_filters_stay():
    images = smooth_images()
    conv = nn.Conv2d(3, 20, 1)
    drawn = conv.weight.detach().clone()
    Whiten()(conv, images)
    lengths = conv.weight.flatten(1).norm(dim=1)[:3]
    assert torch.equal(lengths, lengths.sort().values), "the more variance, the shorter the filter"
    assert torch.equal(conv.weight[6:], drawn[6:])


def test_dirac_passes_the_inputs_on_behind_the_first_convolution():
    layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.Conv2d(6, 2, 1)]
    network = nn.Sequential(*layers)
    drawn = [layer.weight.detach().clone() for layer in layers]
    Dirac()(network, torch.empty(0))
    features = torch.randn(2, 4, 5, 5)
    assert torch.equal(network[1](features)[:, :4], features)
    for index in (0, 2):
        assert torch.equal(layers[index].weight, drawn[index])
    assert torch.equal(layers[1].weight[4:], drawn[1][4:])


def test_whitening_needs_a_convolution_with_enough_filters():
    with pytest.raises(ConfigError, match="needs a convolution"):
        Whiten()(nn.Linear(2, 2), smooth_images())
    with pytest.raises(ConfigError, match=r"at least 75 filters in the first convolution.*it has 6"):
        Whiten()(
            ConvNet(3, 10, (32, 32), channels=[6, 16], kernel_size=5, batch_norm=False, hidden=[]), smooth_images()
        )


def test_speednet_begins_whitened_with_frozen_filters_and_scales():
    network = SpeedNet(3, 10, (32, 32))
    Whiten()(network, smooth_images())
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert "whiten.bias" in trained
    assert "whiten.weight" not in trained
    assert not any("norms" in name and name.endswith("weight") for name in trained)
    # The sizes of Jordan 2024: 2.0 million parameters, frozen ones included.
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_972_792
    assert network(torch.randn(4, 3, 32, 32)).shape == (4, 10)


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"channels": []}, "channels"), ({"convs": 0}, "convs"), ({"image_size": (8, 8)}, "too small for 3 groups")],
)
def test_speednet_refuses_what_it_cannot_build(changes: dict, text: str):
    with pytest.raises(ConfigError, match=text):
        SpeedNet(**{"in_channels": 3, "num_classes": 10, "image_size": (32, 32)} | changes)


class Orthogonal:
    """As a user writes it."""

    def __call__(self, network: nn.Module, images: torch.Tensor) -> None:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.orthogonal_(module.weight)


def test_torchs_own_functions_work_in_an_init_of_the_users_own(train: Train):
    folder = train("+init.orthogonal._target_=tests.test_init.Orthogonal", "trainer.max_epochs=1")
    assert read(folder / "run.json")["status"] == "completed"

"""Optimizers: groups of parameters, and Muon against float64 references."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnlab.checkpoint import read_checkpoint
from cnnlab.errors import ConfigError
from cnnlab.model import ResNet
from cnnlab.optimizer import FusedSGD, Muon, fused, may_fuse, parameter_groups
from cnnlab.optimizer.muon import orthogonalize
from tests.conftest import Train, read
from tests.launches import Launches
from tests.prove.resume import compare


def network() -> nn.Module:
    torch.manual_seed(0)
    return ResNet(3, 10, blocks=[1, 1], channels=[4, 8], shortcut="projection")


def set_gradients(parameters: list[Any], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)


def polynomial(singular: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
    return singular


def exact_orthogonalize(matrix: Tensor, steps: int) -> Tensor:
    """The closed form: the iteration acts on the singular values alone."""
    u, singular, v = torch.linalg.svd(matrix.double() / matrix.double().norm(), full_matrices=False)
    return u @ torch.diag(polynomial(singular, steps)) @ v


def test_one_group_when_everything_decays():
    net = network()
    (group,) = parameter_groups(net, 0.1, decay_bias_and_norm=True)
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters()]
    assert group["weight_decay"] == 0.1


def test_biases_and_norms_stand_in_a_second_group_that_does_not_decay():
    net = network()
    decays, rest = parameter_groups(net, 0.1, decay_bias_and_norm=False)
    names = {name: id(parameter) for name, parameter in net.named_parameters()}
    assert {names["conv.weight"], names["linear.weight"]} < {id(parameter) for parameter in decays["params"]}
    assert {names["norm.weight"], names["norm.bias"], names["linear.bias"]} < {id(p) for p in rest["params"]}
    assert len(decays["params"]) + len(rest["params"]) == len(names)
    assert (decays["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


def test_frozen_parameters_are_left_out():
    net = network()
    net.get_submodule("stages").requires_grad_(False)
    (group,) = parameter_groups(net, 0.0)
    assert len(group["params"]) == 5
    with pytest.raises(ConfigError, match="must have trainable parameters"):
        parameter_groups(nn.Flatten(), 0.0)


@pytest.mark.parametrize("shape", [(16, 27), (64, 18), (10, 10), (1, 9), (3, 5, 16, 27)])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_newton_schulz_is_its_polynomial_of_the_singular_values(shape: tuple[int, ...], steps: int):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    result = orthogonalize(matrices, steps)
    assert result.shape == shape
    for ours, matrix in zip(result.reshape(-1, *shape[-2:]), matrices.reshape(-1, *shape[-2:]), strict=True):
        torch.testing.assert_close(ours.double(), exact_orthogonalize(matrix, steps), rtol=1e-4, atol=1e-4)


def test_newton_schulz_brings_singular_values_near_one_whatever_the_scale():
    matrix = torch.randn(32, 288, generator=torch.Generator().manual_seed(1))
    for scale in (1e-4, 1.0, 1e4):
        singular = torch.linalg.svdvals(orthogonalize(scale * matrix, 5))
        assert singular.min() > 0.6
        assert singular.max() < 1.3
    assert not orthogonalize(torch.zeros(4, 9), 3).any()


@pytest.mark.parametrize("normalize", [True, False])
def test_filters_follow_the_float64_reference(normalize: bool):
    lr, momentum, decay = 0.24, 0.6, 1e-2
    weights = [nn.Parameter(torch.randn(6, 3, 5, 5)), nn.Parameter(torch.randn(6, 3, 5, 5) + 0.1)]
    exact = [weight.detach().double() for weight in weights]
    buffers = [torch.zeros_like(weight) for weight in exact]
    optimizer = Muon(weights, lr=lr, momentum=momentum, weight_decay=decay, normalize=normalize)
    for step in range(4):
        set_gradients(weights, step)
        for i, weight in enumerate(weights):
            assert weight.grad is not None
            gradient = weight.grad.double()
            buffers[i] = momentum * buffers[i] + gradient
            update = exact_orthogonalize((gradient + momentum * buffers[i]).flatten(1), 3).view_as(exact[i])
            kept = 6**0.5 / exact[i].norm() if normalize else 1 - decay
            exact[i] = kept * exact[i] - lr * update
        optimizer.step()
    for weight, reference in zip(weights, exact, strict=True):
        torch.testing.assert_close(weight.detach().double(), reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shape", "lr"), [((10, 7), 0.67), ((7,), 0.053)])
def test_the_rest_follows_nesterovs_sgd(shape: tuple[int, ...], lr: float):
    ours, theirs = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(shape))
    muon = Muon([ours], linear_lr=0.67, bias_lr=0.053, sgd_momentum=0.85, weight_decay=1e-2)
    # The decay that Muon is given is the share lost in a step, whatever the learning rate.
    sgd = torch.optim.SGD([theirs], lr=lr, momentum=0.85, nesterov=True, weight_decay=1e-2 / lr)
    for step in range(5):
        set_gradients([ours], step)
        set_gradients([theirs], step)
        muon.step()
        sgd.step()
    torch.testing.assert_close(ours, theirs)


def test_memory_format_of_the_filters_does_not_matter():
    plain = nn.Parameter(torch.randn(8, 4, 3, 3))
    last = nn.Parameter(plain.detach().contiguous(memory_format=torch.channels_last))
    for weight in (plain, last):
        set_gradients([weight], 0)
        Muon([weight]).step()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain, last)


def test_muon_has_a_group_for_each_kind_and_decay():
    groups = Muon(
        parameter_groups(network(), 1e-3, decay_bias_and_norm=False),
        lr=0.24, linear_lr=0.67, bias_lr=0.053,
    ).param_groups  # fmt: skip
    assert [group["kind"] for group in groups] == ["filter", "linear", "bias"]
    assert [group["lr"] for group in groups] == [0.24, 0.67, 0.053]
    assert [group["weight_decay"] * group["lr"] for group in groups] == pytest.approx([1e-3, 1e-3, 0])


def test_a_factor_on_each_groups_rate_scales_the_step():
    steps = []
    for factor in (1.0, 0.5):
        net = network()
        before = [parameter.detach().clone() for parameter in net.parameters()]
        optimizer = Muon(parameter_groups(net, 0.0), normalize=False)
        for group in optimizer.param_groups:
            group["lr"] *= factor
        set_gradients(list(net.parameters()), 0)
        optimizer.step()
        steps.append([new - old for new, old in zip(net.parameters(), before, strict=True)])
    for full, half in zip(*steps, strict=True):
        torch.testing.assert_close(half, full / 2, rtol=1e-4, atol=1e-6)


def test_resumed_muon_equals_the_uninterrupted_one():
    straight, resumed = network(), network()
    optimizer, first = (Muon(parameter_groups(net, 1e-3, False)) for net in (straight, resumed))
    for step in range(3):
        for net, muon in ((straight, optimizer), (resumed, first)):
            set_gradients(list(net.parameters()), step)
            muon.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Muon(parameter_groups(resumed, 1e-3, False))
    second.load_state_dict(torch.load(file, weights_only=True))
    for net, muon in ((straight, optimizer), (resumed, second)):
        set_gradients(list(net.parameters()), 3)
        muon.step()
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_muon_calls_the_closure_and_skips_parameters_without_gradient():
    net = network()
    unused = nn.Parameter(torch.ones(3, 3, 3, 3))
    optimizer = Muon([*net.parameters(), unused])

    def closure() -> Tensor:
        loss = net(torch.ones(2, 3, 8, 8)).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    assert torch.equal(unused, torch.ones(3, 3, 3, 3))
    assert all(parameter.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"lr": 0}, "lr must be above 0, got 0"),
        ({"bias_lr": -1}, "bias_lr"),
        ({"momentum": 1.0}, "momentum"),
        ({"sgd_momentum": -0.1}, "sgd_momentum"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"ns_steps": 0}, "ns_steps"),
    ],
)
def test_muon_refuses_arguments_out_of_range(changes: dict[str, Any], text: str):
    with pytest.raises(ValueError, match=text):
        Muon([nn.Parameter(torch.ones(2, 2))], **changes)


OTHERS = [
    ["optimizer=adam", "optimizer._target_=torch.optim.Adafactor", "~optimizer.betas", "~optimizer.eps"],
    ["optimizer=sgd", "~optimizer.weight_decay", "~optimizer.lr", "optimizer.norm_bias_factor=2"],
    ["optimizer=adam", "optimizer._target_=torch.optim.LBFGS", "~optimizer.betas", "~optimizer.eps",
     "~optimizer.weight_decay", "+optimizer.max_iter=2", "model.channels_last=false"],
]  # fmt: skip
MORE = [
    ["optimizer=rmsprop", "optimizer._target_=torch.optim.Rprop", "~optimizer.weight_decay", "~optimizer.alpha",
     "~optimizer.eps", "~optimizer.momentum", "~optimizer.centered"],
    ["optimizer=adam", "optimizer._target_=torch.optim.NAdam"],
]  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [*OTHERS, *(pytest.param(overrides, marks=pytest.mark.slow) for overrides in MORE)],
    ids=lambda overrides: overrides[1].rpartition(".")[2],
)
def test_optimizers_with_other_arguments_train_and_resume_to_the_same_bits(
    train: Train, tmp_path: Path, overrides: list[str]
):
    options = [*overrides, "model=speednet", "model.channels=[4,8]"]
    whole = train(*options, folder=tmp_path / "whole")
    train(*options, "trainer.max_epochs=1", folder=tmp_path / "resumed")
    train(f"resume='{tmp_path}/resumed'", "trainer.max_epochs=2", folder=tmp_path / "resumed")
    states = [read_checkpoint(folder / "checkpoints/last.ckpt") for folder in (whole, tmp_path / "resumed")]
    for part in ("state_dict", "optimizer_states"):
        assert not compare(states[0][part], states[1][part], part)


def test_groups_of_an_optimizer_without_weight_decay_have_none():
    net = network()
    (group,) = parameter_groups(net, None)
    assert group.keys() == {"params"}
    rest, biases = parameter_groups(net, None, lr=0.1, norm_bias_factor=4)
    assert (rest.keys(), biases["lr"]) == ({"params"}, 0.4)
    for options in ({"decay_bias_and_norm": False}, {"norm_bias_factor": 2.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            parameter_groups(net, None, **options)


FUSED: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}),
    (torch.optim.Adam, {"lr": 0.01, "weight_decay": 1e-2}),
    (torch.optim.AdamW, {"lr": 0.01}),
    (torch.optim.Adagrad, {"lr": 0.01}),
]


@pytest.mark.parametrize(("device", "dtype"), sorted(fused.RIGHT, key=str), ids=str)
@pytest.mark.parametrize(("optimizer", "options"), FUSED)
def test_fused_steps_are_the_plain_ones_where_they_are_taken(
    optimizer: Any, options: dict[str, Any], device: str, dtype: torch.dtype
):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    begun = torch.randn(16, 8, 3, 3, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    weights = [nn.Parameter(begun.clone()) for _ in range(2)]
    both = [optimizer([weight], fused=fuse, **options) for weight, fuse in zip(weights, (True, False), strict=True)]
    assert may_fuse(nn.ParameterList(weights))
    for step in range(5):
        for weight, each in zip(weights, both, strict=True):
            set_gradients([weight], step)
            # As autograd has it: a gradient lies in memory as its weight does.
            weight.grad = weight.grad.contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
            each.step()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(weights[0], weights[1], rtol=tolerance, atol=tolerance)
    assert not torch.equal(weights[0], begun)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
        {"momentum": 0.5, "dampening": 0.3, "maximize": True},
    ],
)
@pytest.mark.parametrize("change", ["none", "another type", "a hook", "resumed", "scaled"])
def test_our_fused_sgd_has_the_bits_of_torchs(options: dict[str, Any], change: str):
    """Over two groups, one weight without a gradient, and a rate that changes; its hooks and states are torch's too."""
    calls: list[int] = []
    results = []
    for kind in (torch.optim.SGD, FusedSGD):
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(5, 3)) for _ in range(4)]
        if change == "another type":
            weights[0] = nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
        groups: list[dict[str, Any]] = [{"params": weights[:2]}, {"params": weights[2:], "lr": 0.3}]
        optimizer = kind(groups, lr=0.1, fused=True, **options)
        if change == "a hook":
            optimizer.register_step_post_hook(lambda *_: calls.append(1))
        for step in range(4):
            for weight in weights[:3]:
                weight.grad = torch.full_like(weight, step + 1.0) * weight.detach()
            if change == "scaled":
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)  # type: ignore[attr-defined]
            assert optimizer.step(lambda: torch.is_grad_enabled()) is True
            optimizer.param_groups[0]["lr"] *= 0.5
            if change == "resumed":
                state = optimizer.state_dict()
                optimizer = kind(groups, lr=0.1, fused=True, **options)
                optimizer.load_state_dict(state)
        results.append([weight.detach() for weight in weights])
    assert all(map(torch.equal, *results))
    assert len(calls) == (8 if change == "a hook" else 0)


def test_fused_steps_are_not_taken_for_narrow_weights():
    for dtype in (torch.bfloat16, torch.float16):
        assert not may_fuse(nn.Linear(2, 2, dtype=dtype))


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed", "bf16"])
def test_every_precision_learns_and_clips(train: Train, precision: str):
    folder = train(
        f"trainer.precision={precision}", "trainer.gradient_clip_val=1", "trainer.max_epochs=8", "optimizer.lr=0.05"
    )
    assert read(folder / "metrics.json")["test/accuracy"] > 0.5


def test_muon_steps_layers_of_a_shape_together():
    """Twice as many layers of the same shapes take as many operations."""
    counts = []
    for depth in (1, 2):
        layers = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(4 * depth)))
        optimizer = Muon(parameter_groups(layers, 0.1))
        for parameter in layers.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        with Launches() as launches:
            optimizer.step()
        counts.append(launches.count)
    assert counts[0] == counts[1] < 30, counts

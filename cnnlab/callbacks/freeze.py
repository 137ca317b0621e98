"""Parameters that are trained for a part of the run only."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import SGD, Optimizer
from typing_extensions import override

from cnnlab.bounds import NonNegativeInt, PositiveInt, within_bounds
from cnnlab.errors import ConfigError


@within_bounds("callbacks.freeze")
class Freeze(Callback):
    """Keep parameters as they are during some epochs, and the statistics of norms whose parameters are kept.

    Args:
        parameters: Their names in the network, with wildcards: `body.features.*`. A name that starts with `!` takes
            parameters back out.
        from_epoch: The first epoch in which they are frozen.
        until_epoch: The first epoch in which they are trained again; null: never.

    Raises:
        ConfigError: No parameter has such a name.
    """

    def __init__(
        self,
        parameters: Sequence[str],
        from_epoch: NonNegativeInt = 0,
        until_epoch: PositiveInt | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self.from_epoch = from_epoch
        self.until_epoch = until_epoch

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = {
            name.removeprefix("network."): parameter
            for name, parameter in pl_module.named_parameters()
            if parameter.requires_grad
        }
        self._chosen = [parameter for name, parameter in parameters.items() if self._chooses(name)]
        if not self._chosen:
            names = ", ".join(list(parameters)[:12])
            raise ConfigError(f"callbacks.freeze.parameters={self.parameters} fits no trained parameter: {names}, ...")
        chosen = {id(parameter) for parameter in self._chosen}
        norms = {name: module for name, module in pl_module.named_modules() if hasattr(module, "track_running_stats")}
        self._norms = [
            module for name, module in norms.items()
            if chosen.issuperset(map(id, module.parameters()))
            and (list(module.parameters()) or self._chooses(f"{name.removeprefix('network.')}.weight"))
        ]  # fmt: skip
        self._apply(trainer)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._apply(trainer)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._frozen:
            for parameter in self._chosen:
                parameter.grad = None

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for parameter in self._chosen:
            parameter.requires_grad = True
        for norm in self._norms:
            norm.train()

    def _chooses(self, name: str) -> bool:
        wanted = any(fnmatchcase(name, pattern) for pattern in self.parameters if not pattern.startswith("!"))
        return wanted and not any(
            fnmatchcase(name, pattern[1:]) for pattern in self.parameters if pattern.startswith("!")
        )

    def _apply(self, trainer: Trainer) -> None:
        epoch = trainer.current_epoch
        frozen = self.from_epoch <= epoch and (self.until_epoch is None or epoch < self.until_epoch)
        for parameter in self._chosen:
            # Without a gradient the optimizer leaves it alone, momentum and weight decay included. Several processes
            # wait for each other's gradients, though, of all parameters that had one in the beginning.
            parameter.requires_grad = not frozen or trainer.world_size > 1
        self._frozen = frozen
        for norm in self._norms:
            norm.train(not frozen)  # its running statistics follow the images only in training
        if not frozen:
            for optimizer in trainer.optimizers:
                self._begin_momentum(optimizer)

    def _begin_momentum(self, optimizer: Optimizer) -> None:
        # The fused SGD takes momentum for all parameters of a group or for none; zero is what it begins with.
        for group in optimizer.param_groups:
            begun = [parameter for parameter in group["params"] if "momentum_buffer" in optimizer.state[parameter]]
            for parameter in group["params"] if begun and isinstance(optimizer, SGD) else ():
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

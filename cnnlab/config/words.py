"""Put mistakes into words: values as they are typed, and the name that was probably meant."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from cnnlab.errors import ConfigError

# What people call a key elsewhere, by its name here.
CALLED = {
    "optimizer": "optim",
    "optimizer.lr": "learning_rate",
    "optimizer.weight_decay": "wd l2",
    "data": "dataset datamodule",
    "data.batch_size": "bs batch batchsize",
    "data.path": "data_dir",
    "augment": "transform transforms augmentation",
    "model": "net network arch",
    "schedule": "scheduler lr_scheduler",
    "loss": "criterion",
    "loss.label_smoothing": "smoothing",
    "trainer.max_epochs": "epoch epochs n_epochs num_epochs",
    "trainer.max_steps": "steps",
    "trainer.accelerator": "gpu device",
    "trainer.devices": "gpus num_gpus",
    "trainer.num_nodes": "nodes",
    "trainer.precision": "amp fp16",
    "trainer.gradient_clip_val": "grad_clip",
    "resume": "ckpt_path checkpoint",
    "seed": "random_seed",
    "hydra.run.dir": "output_dir save_dir",
}
SYNONYMS = {word: key for key, words in CALLED.items() for word in words.split()}

MOST_LINES = 10
"""How many mistakes one refusal tells, each on a line."""

# Texts that would be read as something else, or be overlooked, without quotes.
_QUOTED = r"|[-+.\d_e]+|\s.*|.*\s|(?i:true|false|null|nan|inf)"


def as_typed(value: Any) -> str:
    """Return a value as one would type it, on one line and not too long."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str() if value.isprintable() and not re.fullmatch(_QUOTED, value):
            typed = value
        case Mapping():
            typed = "{" + ", ".join(f"{as_typed(key)}: {as_typed(element)}" for key, element in value.items()) + "}"
        case list():
            typed = "[" + ", ".join(map(as_typed, value)) + "]"
        case _:
            typed = ascii(value)
    return typed if len(typed) <= 80 else f"{typed[:77]}..."


def nearest(word: object, words: Sequence[str]) -> str | None:
    """Return the one of the words that is most like the given one, or None where none is near."""
    by_lower = {candidate.lower(): candidate for candidate in words}
    near = get_close_matches(str(word).lower()[:100], by_lower, n=1, cutoff=0.6)
    return by_lower[near[0]] if near else None


def nearest_key(key: str, keys: Sequence[str]) -> str | None:
    """Return the key that was probably meant, or None where none is near."""
    section, _, name = key.lower().replace("-", "_").rpartition(".")
    inside = {other.rpartition(".")[2]: other for other in keys if other.rpartition(".")[0] == section}
    meant = SYNONYMS.get(name)
    same_name = next((other for other in keys if other.rpartition(".")[2].lower() == name), None)
    if meant in keys and (not section or meant in inside.values()):
        return meant
    if section and (near := nearest(name, list(inside))):
        return inside[near]
    if meant in keys or same_name:
        return meant if meant in keys else same_name
    # Where the section is right, it would make all its keys look near.
    return None if section and inside else nearest(key, keys)


def refusal(*mistakes: str) -> ConfigError:
    """Return the error for mistakes: each once, on a line of its own, in letters that can be printed.

    A sweep may make the same mistake in a thousand values: beyond the first ten they are counted.
    """
    lines = [*dict.fromkeys(mistakes)]
    rest = [f"{len(lines) - MOST_LINES} more mistakes: mend these first"] if len(lines) > MOST_LINES else []
    return ConfigError(
        "\n".join(
            "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in mistake)
            for mistake in (*lines[:MOST_LINES], *rest)
        )
    )

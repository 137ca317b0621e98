"""What is trained on the stand-in GPU and on the CPU: every option of every group, and what crosses them."""

import importlib.util
from pathlib import Path

CONF = Path(__file__).parents[2] / "conf"

GROUPS = ("augment", "callbacks", "init", "loss", "metrics", "model", "optimizer", "schedule")
NEEDS = {"kornia": "kornia", "timm": "timm", "torchvision": "torchvision"}
SAME = {
    *("augment=none", "callbacks=default", "init=none", "loss=cross_entropy", "metrics=default", "optimizer=sgd"),
    *("schedule=constant", "model=resnet56"),
}
"""Options that train what `model=lenet` trains, with nothing else said, and deeper networks of the same layers."""
LIST = ("augment", "callbacks", "init", "metrics")  # several options may be given
ALSO = {
    "init=whiten": ["model=speednet"],
    "callbacks=whiten_bias": ["model=speednet"],
    "model=resnet18": ["model.channels=[8,16,16,16]"],
    "model=custom": ["model._target_=tests.test_options.Own", "+model.width=8"],
    "model=timm": ["model.name=resnet18"],
    "model=torchvision": ["model.name=resnet18"],
    "model=wide_resnet": ["model.depth=10", "model.width=1"],
    "augment=resized_crop": ["augment.resized_crop.size=24", "eval.resize=24"],
    "callbacks=lookahead": ["callbacks.lookahead.every_n_steps=2"],
}


def options() -> dict[str, list[str]]:
    """Return the overrides of a training for every option that a step can be different with."""
    cases = {}
    for group in GROUPS:
        for path in sorted((CONF / group).glob("*.yaml")):
            name = path.stem
            if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
                continue
            case = f"{group}={name}"
            if case in SAME:
                continue
            beside_default = group in ("callbacks", "metrics") and name not in ("default", "none")
            cases[case] = [f"{group}=[default,{name}]" if beside_default else case, *ALSO.get(case, [])]
    return cases


CROSSED = {
    "every augmentation": ["augment=[flip_crop,cutout,mixup,cutmix]"],
    "mirrored every other epoch": ["augment=alternating_flip", "trainer.max_epochs=2"],
    "smoothed labels": ["loss.label_smoothing=0.1"],
    "weighted classes": ["loss.class_weights=balanced"],
    "dropout": ["model.dropout=0.3"],
    "no validation": ["data.val_size=0", "objective.metric=test/accuracy"],
    "on the host": ["data.resident=host"],
    "on the disk": ["data.resident=disk"],
    "distilled": ["classifier=distillation", "classifier.teacher=TEACHER"],
    "channels first": ["model.channels_last=false"],
    "clipped": ["trainer.gradient_clip_val=0.01"],
    "clipped by value": ["trainer.gradient_clip_val=0.01", "trainer.gradient_clip_algorithm=value"],
    "accumulated": ["trainer.accumulate_grad_batches=2"],
    "double": ["trainer.precision=64-true"],
    "speed record": [
        "model=speednet", "optimizer=muon", "augment=alternating_flip", "loss.label_smoothing=0.2",
        "callbacks=[default,lookahead]", "callbacks.lookahead.every_n_steps=2", "schedule=linear",
    ],
}  # fmt: skip

MUON = ("speed record",)
"""Cases with Muon, whose name does not say so."""

NARROW = {
    "bf16-mixed": ["trainer.precision=bf16-mixed"],
    "bf16-mixed, clipped": ["trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1"],
    "bf16-true": ["trainer.precision=bf16-true"],
    "16-true": ["trainer.precision=16-true"],
    "16-mixed": ["trainer.precision=16-mixed"],
    "16-mixed, clipped": ["trainer.precision=16-mixed", "trainer.gradient_clip_val=1"],
    "16-mixed, muon": ["trainer.precision=16-mixed", "optimizer=muon"],
}
"""Compared with the CPU in the same precision, where it has it, else in 32 bits."""

FAULTS = {
    name: [f"+augment.fault._target_=tests.standin.faults.{name}"]
    for name in ("HostIndex", "HostGenerator", "ReadBack", "ReadMask")
}

REFUSED = {"two GPUs": ["trainer.devices=2"]}

RESUMED = {"sgd": [], "adam, augmented": ["optimizer=adam", "augment=[flip_crop,mixup]", "model.dropout=0.2"]}

DEPTHS = {
    "shallow": ["model=wide_resnet", "model.width=1", "model.depth=10"],
    "deep": ["model=wide_resnet", "model.width=1", "model.depth=16"],
}
GROWING = {
    "sgd": ["optimizer=sgd"],
    "adam": ["optimizer=adam"],
    "adamw": ["optimizer=adamw"],
    "rmsprop": ["optimizer=rmsprop"],
    "muon": ["optimizer=muon"],
    "lookahead": ["callbacks=[default,lookahead]", "callbacks.lookahead.every_n_steps=1"],
    "ema": ["callbacks=[default,ema]"],
    "clipped": ["trainer.gradient_clip_val=1"],
}
"""What looks at every parameter, for a network of twice as many layers of the same kinds."""

PLAIN_LOOP = ["no Trainer"]

LAUNCHES = {
    "a plain loop": (PLAIN_LOOP, 40),
    "lenet": ([], 41),
    "lenet, flip_crop": (["augment=flip_crop"], 45),
    "lenet, alternating_flip": (["augment=alternating_flip"], 46),
    "lenet, cutout": (["augment=cutout"], 48),
    "lenet, mixup": (["augment=mixup"], 54),
    "lenet, cutmix": (["augment=cutmix"], 68),
    "lenet, smoothed labels": (["loss.label_smoothing=0.1"], 49),
    "speednet, muon": (["model=speednet", "optimizer=muon"], 145),
    "speed record": (CROSSED["speed record"], 160),
}
"""The most operations that a step may launch; the plain loop is the article's, which reads each loss back."""

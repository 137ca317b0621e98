"""What `python train.py --help` prints."""

import textwrap

from cnnlab.config.project import PACKAGE, ROOT
from cnnlab.config.tree import chosen, groups, options

TEXT = """\
Train a convolutional network: from an npz file of images to a trained, tested and recorded network.

  {program} [GROUP=OPTION ...] [KEY=VALUE ...] [FLAG ...]

Usual commands
  {program}                                      the article's network on CIFAR-10
  {program} experiment=quickstart                on images drawn here: nothing to download
  {program} data=npz data.path=FILE.npz          on your own images
  {program} trainer.accelerator=gpu              on the GPU; also cpu, mps; by default what there is
  {program} trainer.max_epochs=20 seed=1         other values
  {program} -m optimizer.lr=0.1,0.01 seed=0,1,2  a sweep: every combination, and a table
  {program} -m ... hydra/launcher=local          several trials at a time; slurm, ray: on a cluster
  {program} -m ... resume=last                   resume the newest sweep, or resume=FOLDER
  {program} search=asha search.n_trials=30       a search for the best values
  {program} resume=last                          resume the newest run, or resume=FOLDER
  {program} check=true model=resnet18            try it out first: go or no go, time, memory
  cnnlab dashboard                                      the curves

Groups, with their options (* is the default; [a,b] takes several, applied in order)
{groups}

Keys
  {program} --cfg job                            all keys with their values
  {program} model=resnet18 --cfg job -p model    those of one group
  {program} optimizer=adam +optimizer.amsgrad=true   a plus: a further argument of the class

Flags
  -m, --multirun      sweep over values with commas, range(3), glob(*)
  --config-dir DIR    options of your own in DIR/data, DIR/model, DIR/experiment, ...
  --hydra-help        the other flags
  Completion with the tab key: eval "$({program} -sc install=bash)"
"""


def help_text() -> str:
    """Return the help of train.py: usual commands, every group with its options, flags."""
    lines = []
    for group, several in groups().items():
        marked = [f"{option}*" if option in chosen(group) else option for option in options(group)]
        text = f"  {group:<12}{', '.join(marked)}{'  [a,b]' if several else ''}"
        lines += textwrap.wrap(text, 110, subsequent_indent=" " * 14, replace_whitespace=False)
    program = "cnnlab train" if ROOT == PACKAGE else "python train.py"
    return TEXT.format(program=program, groups="\n".join(lines))

"""What a user may type wrong: one line that says what is wrong, where, and what to do, status 2,
and nothing written.
"""

import shlex

import pytest
from PIL import Image

import data_prep.__main__
import launch.__main__
import launch.local
import launch.slurm
import lt_train.__main__
import lt_train.benchmark.__main__
from lt_train.errors import EXIT_MISTAKE, exit_status
from tests.helpers.pictures import encode

PROGRAMS = {
    "lt_train": lt_train.__main__.main,
    "benchmark": lt_train.benchmark.__main__.main,
    "data_prep": data_prep.__main__.main,
    "launch": launch.__main__.main,
    "local": launch.local.main,
    "slurm": launch.slurm.main,
}
DEMO = "lt_train classifier_demo"  # whose data are not there: what is told first is the words
MISTAKES = {  # the command: what its line says, parts in their order
    # what is trained
    "lt_train": "name a config, such as classifier_folder|--help shows all",
    "lt_train classifer_demo": "no config|'classifer_demo'|did you mean 'classifier_demo'",
    "lt_train evalute run": "did you mean 'evaluate'",
    "lt_train mine.yaml": "there is no file 'mine.yaml'",
    "lt_train broken.yaml": "cannot read broken.yaml: line 2",
    "lt_train based.yaml": "based.yaml: its base 'nothing' is neither nothing.yaml nor in configs/",
    "lt_train list.yaml": "list.yaml does not hold 'key: value' lines",
    "lt_train empty": "'empty' is a folder, not a config: name a YAML file",
    f"{DEMO} --stepp 5": "unrecognized arguments: --stepp 5",
    "lt_train --list-backbones nothing": "no backbone matches 'nothing'; try 'timm/*'",
    "lt_train --list-keys optim.lrr": "no key matches 'optim.lrr', did you mean 'optim.lr'",
    # keys
    f"{DEMO} optim.lrr=0.1": "unknown key 'optim.lrr', did you mean 'optim.lr'",
    f"{DEMO} batch_size=8": "unknown key 'batch_size', did you mean 'global_batch_size'",
    f"{DEMO} learning_rate=1": "did you mean 'optim.lr'",
    f"{DEMO} optim.lr": "'optim.lr' is not of the form key=value",
    f"{DEMO} optim=1": "'optim' is a group of keys, not a value; use optim.NAME=VALUE",
    f"{DEMO} +ldam_dwr": "no variant '+ldam_dwr', did you mean '+ldam_drw'",
    f"{DEMO} ldam_drw": "did you mean the variant +ldam_drw",
    f"{DEMO} imports=[no_such_module]": "cannot import 'no_such_module'|working directory",
    # values
    f"{DEMO} optim.lr=fast": "optim.lr takes a number, 0 or more, not 'fast'",
    f"{DEMO} optim.lr=-1": "optim.lr must be 0 or more, not -1.0",
    f"{DEMO} optim.lr=inf": "optim.lr must be a finite number",
    f"{DEMO} epochs=0": "epochs must be more than 0, not 0.0",
    f"{DEMO} global_batch_size=2.5": "takes a whole number, more than 0, not '2.5'",
    f"{DEMO} seed=one": "seed takes a whole number|not 'one'",
    f"{DEMO} optim.nesterov=maybe": "optim.nesterov takes true or false, not 'maybe'",
    f"{DEMO} view.scale=0.5": "view.scale takes a list of 2, each a number|not '0.5'",
    f"{DEMO} view.crop=middle": "view.crop takes random_resized | pad | center, not 'middle'",
    f"{DEMO} imports=mine": "imports takes a list of any number, each text, not 'mine'",
    f"{DEMO} method=moko": "there is no 'moko', did you mean 'moco'?; known: moco, rotation",
    f"{DEMO} loss.name=ladm": "there is no 'ladm', did you mean 'ldam'",
    f"{DEMO} sampler.name=balanced": "sampler.name: there is no 'balanced'|known: ",
    f"{DEMO} model.backbone=resnet51": "there is no 'resnet51', did you mean 'resnet50'",
    f"{DEMO} model.backbone=timm/vit_tinny_patch16_224": "did you mean 'vit_tiny_patch16_224'",
    f"{DEMO} engine.name=horovod": "engine.name takes ddp | deepspeed, not 'horovod'",
    # what does not go together
    f"{DEMO} loss.name=ldam": "margins between cosines: set classifier.head=cosine",
    f"{DEMO} engine.name=deepspeed engine.zero_stage=3": "zero_stage=3 is not supported|use 1 or 2",
    f"{DEMO} optim.name=lars engine.name=deepspeed": "use engine.name=ddp or engine.zero_stage=0",
    f"{DEMO} optim.step_epochs=[5]": "one entry each for every step",
    f"{DEMO} data.root=s3://bucket/set": "is a URL: set data.cache_dir to a local folder",
    "lt_train semi_cifar10_lt unlabeled.root=": "two data sets: set unlabeled.root",
    "lt_train score classifier_demo --pool set": "needs a config of the sourcing method",
    # data and runs that are not there
    f"{DEMO} data.root=": "data.root is not set: name a folder that python -m data_prep",
    f"{DEMO} data.root=nowhere": "'nowhere' is not a prepared data set|no such folder|data_prep",
    f"{DEMO} data.root=empty": "'empty' is not a prepared data set: it has no dataset.json",
    "lt_train evaluate nowhere": "'nowhere' is not a run|that lt_train has trained in",
    "lt_train evaluate empty --crops 7": "--crops: invalid choice: 7",
    "lt_train posthoc empty": "'empty' is not a run: it has no config.yaml",
    "lt_train pseudo_label nowhere --data set": "'nowhere' is not a run",
    "lt_train report nowhere": "'nowhere' is not a folder: name a run, or a folder of runs",
    "lt_train report empty": "there is no run in 'empty'|name a run.dir, or a folder of them",
    "lt_train export nowhere": "nowhere is not a finished run|no such folder",
    "lt_train completion tcsh": "invalid choice: 'tcsh'",
    # preparing data
    "data_prep": "the following arguments are required: COMMAND",
    "data_prep imagenet": "invalid choice: 'imagenet'|'imagenet_lt'",
    "data_prep folder --source nowhere --out out": "no 'nowhere'; --source DIR: class folders",
    "data_prep svhn_lt --source nowhere --out out": "there is no 'nowhere'|train_32x32.mat",
    "data_prep inat18 --source flat --lists nowhere --out out": "iNaturalist18_train.txt",
    "data_prep folder --source empty --out out": "no class folders|give the images of each class",
    "data_prep folder --source flat --out out": "no class folders|passed over: 2 images beside",
    "data_prep folder --source flat": "required: --out",
    "data_prep demo --out flat": "'flat' is not empty; choose another --out",
    "data_prep demo --out out --imbalance-ratio 0.5": "--imbalance-ratio|at least 1, not 0.5",
    "data_prep demo --out out --workers 0": "--workers must be at least 1, not 0",
    "data_prep demo --out out --task 3/2": "'3/2' is not I/N",
    "data_prep imagenet_lt --source flat --lists x --out out": "no 'x'; --lists DIR|_LT_val.txt",
    "data_prep imagenet_lt --source flat --lists flat --out out": "neither train/ nor ILSVRC2012",
    "data_prep verify nowhere": "'nowhere' is not a prepared data set: there is no such folder",
    "data_prep info empty": "'empty' is not a prepared data set|was data_prep interrupted?",
    # starting
    "launch": "local|slurm|--help tells more",
    "launch cluster": "'cluster' is no place to run",
    "local": "name a config or a pipeline, or give --list",
    "local demoo": "no config or pipeline 'demoo' in configs/, did you mean 'demo'",
    "local demo --ranks 0": "--ranks must be at least 1, not 0",
    "local demo --ranks two": "--ranks: invalid int value: 'two'",
    "local demo nostage:seed=1": "pipeline demo has no stage 'nostage'; it has data",
    "local demo data:seed=1": "stage data is a command of data_prep, which has no config keys",
    "slurm classifier_demo --nodes 0": "--nodes must be at least 1, not 0",
    "slurm status nowhere": "'nowhere' has no submitted jobs; name the folder",
    "benchmark": "name a config, or give --suite cpu or --suite gpu",
    "benchmark classifier_demoo": "did you mean 'classifier_demo'",
    "benchmark --suite tpu": "--suite tpu: there are cpu and gpu",
    "benchmark classifier_demo --suite cpu": "give no CONFIG and no --baseline",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what is there, but is not what it is taken for."""
    root = tmp_path_factory.mktemp("place")
    (root / "empty").mkdir()
    (root / "flat").mkdir()
    for name in "ab":
        (root / "flat" / f"{name}.png").write_bytes(encode(Image.new("RGB", (8, 8)), "PNG"))
    (root / "broken.yaml").write_text("a: [\n")
    (root / "based.yaml").write_text("base: nothing\n")
    (root / "list.yaml").write_text("- a\n- b\n")
    return root


def test_they_are_sixty_at_least():
    assert len(MISTAKES) >= 60


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_that_helps(command, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    name, *words = shlex.split(command)
    try:
        status = exit_status(name, lambda: PROGRAMS[name](words))
    except SystemExit as left:  # argparse's
        status = left.code
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if "error: " in line]
    assert status == EXIT_MISTAKE and len(lines) == 1 and "Traceback" not in said.err
    rest = lines[0]
    for part in MISTAKES[command].replace(" | ", "\0").split("|"):
        _, found, rest = rest.partition(part.replace("\0", " | "))
        assert found, f"{lines[0]!r} lacks {part!r}, in this order"
    assert sorted(place.rglob("*")) == before

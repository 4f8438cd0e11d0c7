"""The pipelines that configs/ ships: each resolves whole, each row of the paper's table is one."""

import functools
from pathlib import Path

import pytest

from launch.grid import list_members
from launch.pipeline import PIPELINE_DIR, Experiment, load_experiment, make_experiment
from lt_train.config.load import list_configs, load_config
from lt_train.config.schema import Config

REFERENCE = {  # top-1 error, %: Yang and Xu 2020, their tables and README
    "cifar10_lt_ce_100": 29.64,
    "cifar10_lt_ce_50": 25.19,
    "cifar10_lt_ce_10": 13.61,
    "cifar10_lt_ldam_drw_100": 22.97,
    "cifar10_lt_ldam_drw_50": 19.06,
    "cifar10_lt_ldam_drw_10": 11.84,
    "cifar10_lt_semi_50_1": 16.79,
    "cifar10_lt_semi_50_25": 16.88,
    "cifar10_lt_semi_50_50": 18.36,
    "cifar10_lt_semi_50_100": 19.94,
    "svhn_lt_semi_50_1": 13.07,
    "svhn_lt_semi_50_25": 13.36,
    "svhn_lt_semi_50_50": 13.16,
    "svhn_lt_semi_50_100": 14.54,
    "cifar10_lt_rotation_ce_100": 26.50,
    "cifar10_lt_rotation_resample_100": 23.47,
    "cifar10_lt_rotation_ldam_drw_100": 22.17,
    "cifar10_lt_rotation_ce_50": 21.80,
    "cifar10_lt_rotation_resample_50": 19.60,
    "cifar10_lt_rotation_ldam_drw_50": 17.87,
    "cifar10_lt_rotation_ce_10": 12.28,
    "cifar10_lt_rotation_resample_10": 11.57,
    "cifar10_lt_rotation_ldam_drw_10": 11.47,
    "cifar100_lt_rotation_ce_100": 59.60,
    "cifar100_lt_rotation_resample_100": 56.94,
    "cifar100_lt_rotation_ldam_drw_100": 56.57,
    "cifar100_lt_rotation_ce_50": 54.96,
    "cifar100_lt_rotation_resample_50": 52.91,
    "cifar100_lt_rotation_ldam_drw_50": 52.89,
    "cifar100_lt_rotation_ce_10": 42.93,
    "cifar100_lt_rotation_resample_10": 41.94,
    "cifar100_lt_rotation_ldam_drw_10": 41.09,
    "imagenet_lt_moco_ce": 54.4,
    "imagenet_lt_moco_class_balanced": 52.4,
    "imagenet_lt_moco_crt": 48.7,
    "inat18_moco_ce": 35.6,
    "inat18_moco_class_balanced": 34.1,
    "inat18_moco_crt": 31.9,
}
MEMBERS = list_members(PIPELINE_DIR)


@functools.cache
def experiments() -> dict[str, Experiment]:
    """Every member, resolved: each stage's config exists for each value, and its keys are valid."""
    return {member.name: make_experiment(member, []) for member in MEMBERS}


def configs_of(experiment: Experiment) -> dict[str, Config]:
    return {stage.name: stage.resolve() for stage in experiment.stages if stage.kind == "train"}


def configs(name: str, *overrides: str) -> dict[str, Config]:
    return configs_of(load_experiment(name, list(overrides)))


def test_the_paper_s_table_is_there_and_nothing_else_claims_a_reference():
    found = {member.name: member.reference for member in MEMBERS}
    assert {name: error for name, error in found.items() if error is not None} == REFERENCE


def test_names_are_unique_and_no_config_s():
    names = [member.name for member in MEMBERS]
    names += [name for name, _ in list_configs()]
    assert len(set(names)) == len(names)
    assert all(member.description for member in MEMBERS)


@pytest.mark.slow
def test_every_member_resolves_from_data_to_evaluation():
    """Run folders and prepared sets follow from the stages before; the run that a member is for
    carries what it is.
    """
    for member in MEMBERS:
        experiment, made = experiments()[member.name], set()
        for stage in experiment.stages:
            assert set(stage.after) <= made
            made.add(stage.name)
        stages = experiment.stages
        assert len({(stage.kind, stage.run_dir) for stage in stages}) == len(stages)
        words = [word for stage in stages for word in stage.command]
        assert stages[0].kind == "prepare" and not any("{" in word for word in words)
        if member.values:
            last = [stage for stage in stages if stage.kind == "train"][-1]
            assert (last.name, last.run_dir) == ("train", f"runs/{member.name}/train")
            assert f"data.root={stages[0].run_dir}" in last.overrides
            assert f'description="{member.description}"' in last.overrides
            told = [word for word in words if word.startswith("reference_error=")]
            known = member.reference is not None
            assert told == ([f"reference_error={member.reference}"] if known else [])
            assert set(told) <= set(last.overrides)
            (evaluated,) = (stage.words for stage in stages if stage.name == "evaluate")
            assert evaluated[:2] == ("evaluate", last.run_dir)


def test_rotation_then_ldam_drw():
    rotation, train = configs("cifar10_lt_rotation_ldam_drw_100").values()
    assert (
        rotation.method,
        rotation.epochs,
        rotation.optim.step_epochs,
        rotation.rotation.all_four,
    ) == ("rotation", 200, (160, 180), False)
    assert (train.loss.name, train.classifier.head, train.classifier.scale) == (
        "ldam",
        "cosine",
        30,
    )
    assert (train.loss.class_weights, train.loss.weights_from_epoch, train.sampler.name) == (
        "effective_number",
        160,
        "instance_balanced",
    )
    assert train.model.init_from == rotation.run.dir == "runs/cifar10_lt_100/rotation"
    assert train.data.root == rotation.data.root == "data/cifar10_lt_100"
    assert (rotation.reference_error, train.reference_error) == (
        None,
        22.17,
    ) and "ldam_drw after rotation" in train.description


def test_the_schedule_of_the_small_sets():
    """DESIGN's recipe: 200 epochs, lr 0.1, weight decay 2e-4, batch 128, 5 epochs of warm-up, x0.01
    after 160 and x1e-4 after 180.
    """
    (train,) = configs("cifar100_lt_ce_10").values()
    optim = train.optim
    assert (
        train.epochs,
        train.global_batch_size,
        optim.lr,
        optim.lr_batch_size,
        optim.weight_decay,
    ) == (200, 128, 0.1, 128, 2e-4)
    assert (optim.warmup_epochs, optim.step_epochs, optim.step_factors, optim.momentum) == (
        5,
        (160, 180),
        (0.01, 1e-4),
        0.9,
    )
    assert (
        train.model.backbone == "resnet32_cifar"
        and train.loss == Config().loss
        and train.sampler == Config().sampler
    )


def test_balanced_training_is_resample_on_small_and_class_aware_on_large_sets():
    assert configs("cifar10_lt_rotation_resample_50")["train"].sampler.name == "effective_number"
    sampler = configs("inat18_moco_class_balanced")["train"].sampler
    assert (sampler.name, sampler.samples_per_class) == ("class_balanced", 4)


@pytest.mark.parametrize(
    ("data", "batch", "decay", "epochs"),
    [("imagenet_lt", 128, 5e-4, 10), ("inat18", 100, 1e-4, 30)],
)
def test_moco_then_crt(data, batch, decay, epochs):
    moco, ce, crt = configs(f"{data}_moco_crt").values()
    assert (
        moco.method,
        moco.epochs,
        moco.global_batch_size,
        moco.optim.lr,
        moco.optim.weight_decay,
    ) == ("moco", 200, 128, 0.015, 1e-4)
    assert (
        ce.epochs,
        ce.global_batch_size,
        ce.optim.lr,
        ce.optim.lr_batch_size,
        ce.optim.weight_decay,
    ) == (90, batch, 0.2, batch, decay)
    assert (ce.model.init_from, crt.model.init_from) == (moco.run.dir, ce.run.dir)
    assert (
        crt.method,
        crt.epochs,
        crt.global_batch_size,
        crt.optim.lr,
        crt.optim.lr_batch_size,
    ) == ("crt", epochs, 512, 0.2, 512)
    assert (crt.sampler.name, crt.sampler.samples_per_class, crt.optim.weight_decay) == (
        "class_balanced",
        4,
        decay,
    )


@pytest.mark.parametrize("data", ["cifar10_lt", "svhn_lt"])
def test_semi_supervised_rows_label_d_u_with_their_own_classifier(data):
    """The column by which D_U is drawn is not the pseudo-label: of SVHN's extra images it is the
    truth.
    """
    experiment = load_experiment(f"{data}_semi_50_100", [])
    ce, train = configs_of(experiment).values()
    commands = {stage.name: stage.command for stage in experiment.stages}
    assert commands["pseudo_label"] == ("pseudo_label", ce.run.dir, "--data", train.unlabeled.root)
    assert " ".join(commands["unlabeled"][1:]).endswith(
        f"--imbalance-ratio 50 --imbalance-ratio-unlabeled 100 --out {train.unlabeled.root}"
    )
    assert (
        train.unlabeled.label_column,
        train.unlabeled.share,
        train.global_batch_size,
        train.optim.lr_batch_size,
    ) == ("pseudo_label", None, 256, 256)
    assert (
        ce.data.root == train.data.root == f"data/{data}_50"
        and ce.optim.lr == train.optim.lr == 0.1
    )


def test_seeds_draw_pseudo_labels_of_their_own():
    folders = []
    for seed in ("seed=0", "seed=1"):
        stages = load_experiment("cifar10_lt_semi_50_1", [], [seed]).stages
        folders.append({stage.name: stage.run_dir for stage in stages})
    first, second = folders
    assert [name for name in first if first[name] == second[name]] == ["labeled"]


def test_a_shared_folder_is_named_after_the_overrides_that_concern_it():
    """Its own and those of stages that it builds on; what is learnt later makes no difference."""

    def folders(*overrides: str) -> list[str]:
        stages = load_experiment("imagenet_lt_moco_crt", list(overrides)).stages
        return [stage.run_dir for stage in stages if stage.kind == "train"]

    root, shared = "runs/imagenet_lt_moco_crt", "runs/imagenet_lt/moco"
    assert folders() == [shared, f"{shared}_ce", f"{root}/train"]
    assert folders("run.log_every=5") == folders()
    later, before, all_of_them = ",train@epochs=3", ",ce@epochs=3", ",epochs=3"
    assert folders("train:epochs=3") == [shared, f"{shared}_ce", f"{root}{later}/train"]
    assert folders("ce:epochs=3") == [shared, f"{shared}_ce{before}", f"{root}{before}/train"]
    assert folders("epochs=3") == [
        f"{shared}{all_of_them}",
        f"{shared}_ce{all_of_them}",
        f"{root}{all_of_them}/train",
    ]
    first = ",moco@epochs=3"
    assert folders("moco:epochs=3")[:2] == [f"{shared}{first}", f"{shared}_ce{first}"]


def test_what_comes_before_the_classifier_is_shared_by_all_methods():
    first, second = (
        configs("cifar10_lt_rotation_ce_100"),
        configs("cifar10_lt_rotation_resample_100"),
    )
    assert (
        first["rotation"] == second["rotation"]
        and first["train"].run.dir != second["train"].run.dir
    )
    assert (
        configs("cifar10_lt_crt_50")["ce"]
        == configs("cifar10_lt_semi_50_1")["ce"]
        == configs("cifar10_lt_semi_rest_50")["ce"]
    )


def test_posthoc_follows_plain_cross_entropy_alone():
    with_posthoc = set()
    for name, experiment in experiments().items():
        if ("posthoc",) in [stage.words[:1] for stage in experiment.stages]:
            with_posthoc.add(name)
    plain = {member.name for member in MEMBERS if member.values.get("variant") == "ce"}
    assert with_posthoc == plain


def test_compress_scales_every_stage():
    for name, before in configs("svhn_lt_rotation_ldam_drw_10").items():
        after = configs("svhn_lt_rotation_ldam_drw_10", "compress=20")[name]
        assert (
            after.epochs == before.epochs / 20 == 10
            and after.optim.step_epochs == (8, 9)
            and after.optim.warmup_epochs == 0.25
        )
        assert after.loss.weights_from_epoch == before.loss.weights_from_epoch / 20


def test_a_variant_goes_over_every_stage_or_one():
    both, one = (
        configs("cifar10_lt_rotation_ce_100", "+randaugment"),
        configs("cifar10_lt_rotation_ce_100", "train:+randaugment"),
    )
    assert [config.view.randaugment_ops for config in (*both.values(), *one.values())] == [
        2,
        2,
        0,
        2,
    ]


def test_data_lies_where_lt_train_data_points(monkeypatch):
    monkeypatch.setenv("LT_TRAIN_DATA", "/shards")
    experiment = load_experiment("cifar10_lt_ce_100", [])
    assert experiment.stages[0].words == (
        "cifar10_lt",
        "--source",
        "/shards",
        "--imbalance-ratio",
        "100",
        "--out",
        "/shards/cifar10_lt_100",
    )
    assert configs_of(experiment)["train"].data.root == "/shards/cifar10_lt_100"


IMAGES = {  # of training sets, at the smallest that their recipes draw: ratio 100
    "unlabeled_demo": 2_531,
    "cifar10_lt": 12_406,
    "cifar100_lt": 10_847,
    "svhn_lt": 2_478,
    "imagenet_lt": 115_846,
    "inat18": 437_513,
}


def moco_configs() -> dict[str, Config]:
    """Every config of MoCo that knows its set: single ones, and those of pipelines."""
    found = {name: load_config(name) for name, _ in list_configs()}
    for experiment in experiments().values():
        for stage, config in configs_of(experiment).items():
            found[f"{experiment.name}/{stage}"] = config
    return {
        name: config
        for name, config in found.items()
        if config.method == "moco" and config.data.root
    }


@pytest.mark.slow
def test_moco_s_queue_is_at_most_a_quarter_of_the_set_but_where_one_is_published():
    """More is warned of. ImageNet-LT's has the 65,536 keys of Yang and Xu, of 115,846 images."""
    found = moco_configs()
    sets = {name: Path(config.data.root).name for name, config in found.items()}
    assert set(sets.values()) == IMAGES.keys()
    too_large = {
        sets[name]
        for name, config in found.items()
        if 4 * config.moco.queue_size > IMAGES[sets[name]]
    }
    assert too_large == {"imagenet_lt"}
    assert found["moco_imagenet_lt"].moco.queue_size == 65_536

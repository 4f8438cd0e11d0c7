"""launch/ without a cluster: sites, pipelines, snapshots, what is printed, and the command line.

For jobs, see test_launch_jobs.py and test_job.py.
"""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from launch import check, pipeline, slurm, snapshot
from launch.cluster import NO_SLURM
from launch.pipeline import StageJob, load_experiment
from launch.scaling import show_scaling
from launch.sites import Site, apply, environment, load_site, parse_time
from lt_train.config.load import load_config, to_yaml
from lt_train.errors import UserError, exit_status

ROOT = Path(__file__).parents[2]


def one_line(caught) -> None:
    assert "\n" not in str(caught.value)


# --- sites


@pytest.fixture
def site_file(tmp_path):
    def write(text: str) -> Path:
        (tmp_path / "site.yaml").write_text(text)
        return tmp_path / "site.yaml"

    return write


def test_options_go_over_the_site_file_and_a_stage_between_them(site_file):
    file = site_file(
        "nodes: 2\ntime: 12:30:00\nmem_per_gpu: 32\nsetup: [module load x]\nenvironment: {A:"
        " 1}\npartition: fast\n"
    )
    options = {"nodes": 3, "partition": None}
    site = load_site(file, options)
    assert (site.nodes, site.partition, site.mem_per_gpu, site.setup, site.environment) == (
        3,
        "fast",
        "32",
        ("module load x",),
        {"A": "1"},
    )
    assert (
        site.time == "12:30:00"
        and site.minutes == 750
        and site.gpus_per_node == Site().gpus_per_node
    )
    stage = apply(site, {"nodes": 8, "partition": "slow", "time": "60"}, "stage", options)
    assert (stage.nodes, stage.partition, stage.minutes, stage.setup) == (3, "slow", 60, site.setup)
    assert load_site(site_file(""), {}) == Site()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nods: 2", "unknown key 'nods', did you mean 'nodes'"),
        ("3: 2", "unknown key '3'"),
        ("nodes: many", "nodes.*'many'"),
        ("nodes: [1]", "nodes"),
        ("nodes: null", "nodes.*None"),
        ("nodes: 0", "nodes must be at least 1, not 0"),
        ("gpus_per_node: -1", "gpus_per_node must be at least 0"),
        ("gpus_per_node: 0", "gpus_per_node is 0.*cpu_ranks_per_node"),
        ("max_requeues: -1", "max_requeues must be at least 0"),
        ("time: soon", "time must be HH:MM:SS.*'soon'"),
        ("time: '0'", "time must be at least a minute"),
        ("mem_per_gpu: 32GB", "mem_per_gpu must be a number with K, M, G or T, not '32GB'"),
        ("setup: module load x", "setup.*list"),
        ("environment: 3", "environment"),
        ("- nodes", "'key: value' lines"),
        ("nodes: [", "cannot read"),
    ],
)
def test_a_mistake_in_the_site_file_names_file_and_key(site_file, text, words):
    with pytest.raises(UserError, match=rf"site\.yaml.*{words}|{words}.*site\.yaml") as caught:
        load_site(site_file(text + "\n"), {})
    one_line(caught)


def test_a_mistake_in_an_option_names_the_option_and_not_the_site_file(site_file):
    for key, value in {
        "nodes": 0,
        "cpu_ranks_per_node": -1,
        "time": "x",
        "mem_per_gpu": "G",
    }.items():
        with pytest.raises(UserError, match=f"^--{key.replace('_', '-')} must"):
            load_site(site_file("nodes: 2\n"), {key: value})


def test_a_site_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.yaml") as caught:
        load_site(tmp_path / "nowhere.yaml", {})
    one_line(caught)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("2:00", 2),
        ("0:30", 1),
        ("24:00:00", 1440),
        ("1:30:01", 91),
        ("1-0", 1440),
        ("1-2:30", 1590),
        ("2-01:00:00", 2940),
    ],
)
def test_times_are_slurms(text, minutes):
    """https://slurm.schedmd.com/sbatch.html#OPT_time; seconds are rounded up."""
    assert parse_time(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "0:00:00", "-5", "1:2:3:4", "1-", "1h", "1.5"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UserError, match="time must be"):
        parse_time(text)


def test_the_environment_of_jobs(monkeypatch):
    monkeypatch.setenv("WHERE", "/scratch")
    assert environment(Site(cpus_per_gpu=3)) == {"OMP_NUM_THREADS": "3"}
    many = environment(
        Site(nodes=2, environment={"TORCH_FR_BUFFER_SIZE": "7", "TMPDIR": "$WHERE/tmp"})
    )
    assert (
        many["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
        and many["TORCH_FR_BUFFER_SIZE"] == "7"
        and many["TMPDIR"] == "/scratch/tmp"
    )


# --- pipelines


@pytest.fixture
def pipeline_of(tmp_path, monkeypatch):
    """Function that loads a pipeline named "p" whose stages are the given YAML lines."""
    monkeypatch.setattr(pipeline, "PIPELINE_DIR", tmp_path)

    def load(stages: str, overrides: tuple[str, ...] = (), suffix: str = ""):
        (tmp_path / "p.yaml").write_text(f"description: one\nstages:\n{stages}")
        return load_experiment("p", list(overrides), suffix)

    return load


STAGES = """\
  data: {prepare: "demo --out data/x --seed 3", tasks: 2}
  known: {config: sourcing_cifar10, after: [data], set: {data.root: "{data}"}, resources: {nodes: 2}}
  scores: {score: sourcing_cifar10, after: [known], set: {run.dir: "{known}", seed: 4}, tasks: 5}
"""


def test_stages_of_all_three_kinds(pipeline_of):
    experiment = pipeline_of(
        STAGES, ("epochs=2", "scores:epochs=3", "known:data.root=a:b"), "-seed1"
    )
    data, known, scores = experiment.stages
    assert (experiment.name, experiment.root, experiment.has_report) == (
        "p-seed1",
        "runs/p-seed1",
        True,
    )
    assert (data.kind, data.run_dir, data.tasks, data.command) == (
        "prepare",
        "data/x",
        2,
        ("demo", "--out", "data/x", "--seed", "3"),
    )
    assert (known.kind, known.run_dir, known.after, known.resources) == (
        "train",
        "runs/p-seed1/known",
        ("data",),
        {"nodes": 2},
    )
    assert known.command == (
        "sourcing_cifar10",
        "run.dir=runs/p-seed1/known",
        "data.root=data/x",
        "epochs=2",
        "data.root=a:b",
    )
    assert (scores.kind, scores.run_dir, scores.tasks) == ("score", known.run_dir, 5)
    assert scores.command == (
        "score",
        "sourcing_cifar10",
        "run.dir=runs/p-seed1/known",
        "seed=4",
        "epochs=2",
        "epochs=3",
    )


@pytest.mark.parametrize(
    ("stages", "overrides", "words"),
    [
        ("", (), "pipeline p.*stages"),
        ("  a: {}\n", (), "stage a must have one of config, prepare, score"),
        ("  a:\n", (), "stage a does not hold"),
        ("  a: {config: moco_demo, prepare: demo --out x}\n", (), "must have one of"),
        ("  a: {config: moco_demo, affter: []}\n", (), "unknown key 'affter'"),
        ("  a: {config: moco_demo, after: [b]}\n", (), "comes after 'b'"),
        ("  a: {config: moco_demo, after: b}\n", (), "after must be a list"),
        ("  a: {config: moco_demo, tasks: 2}\n", (), "tasks"),
        ("  a: {config: moco_demo, tasks: many}\n", (), "tasks must be a number"),
        ("  a: {config: moco_demo, set: {data.root: '{b}'}}\n", (), r"cannot fill in '\{b\}'"),
        ("  a: {config: moco_demo, set: {data.rot: x}}\n", (), "unknown key 'data.rot'"),
        ("  a: {config: moco_dmo}\n", (), "did you mean 'moco_demo'"),
        ("  a/b: {config: moco_demo}\n", (), "letters"),
        ("  a: {prepare: demo}\n", (), "no --out"),
        ("  a: {prepare: demo --out}\n", (), "no --out"),
        ("  a: {prepare: 'demo --out \"x'}\n", (), "cannot read"),
        ("  a: {config: moco_demo}\n", ("run.dir=x",), "run.dir cannot be changed"),
        ("  a: {config: moco_demo}\n", ("a:run.dir=x",), "run.dir cannot be changed"),
        ("  a: {config: moco_demo}\n", ("b:epochs=1",), "no stage 'b'; it has a"),
    ],
)
def test_a_wrong_pipeline_is_one_line_that_names_the_mistake(pipeline_of, stages, overrides, words):
    with pytest.raises(UserError, match=words) as caught:
        pipeline_of(stages, overrides)
    one_line(caught)


def test_a_stage_is_finished_when_its_last_file_is_there(tmp_path):
    train, prepare, score = (
        StageJob("x", kind, str(tmp_path), config="classifier_demo")
        for kind in ("train", "prepare", "score")
    )
    (tmp_path / "config.yaml").write_text(to_yaml(load_config("classifier_demo")))
    for content, finished in (("", False), ("{}", False), ('{"steps": 3}', True)):
        (tmp_path / "result.json").write_text(content)
        assert train.is_finished() == finished and not prepare.is_finished()
    assert not replace(train, overrides=("epochs=99",)).is_finished(), "asked for more since"
    (tmp_path / "dataset.json").write_text("{}")
    assert prepare.is_finished() and not score.is_finished()


# --- snapshots


def test_a_snapshot_holds_the_packages_alone(tmp_path):
    snapshot.take_snapshot(tmp_path / "code")
    assert {path.name for path in (tmp_path / "code").iterdir()} == {
        "launch",
        "lt_train",
        "data_prep",
        "configs",
        "commit.txt",
        "changes.diff",
    }
    assert (
        not list(tmp_path.rglob("__pycache__"))
        and (tmp_path / "code/configs/moco_demo.yaml").is_file()
    )
    with pytest.raises(UserError, match="cannot copy the code"):
        snapshot.take_snapshot(tmp_path / "code")


def test_a_snapshot_says_what_it_is_and_needs_no_git(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    for name in snapshot.PACKAGES:
        (checkout / name).mkdir(parents=True)
        (checkout / name / "a.py").write_text("before\n")
    monkeypatch.setattr(snapshot, "ROOT", checkout)
    assert (
        snapshot.take_snapshot(tmp_path / "1") == "unknown"
        and (tmp_path / "1/launch/a.py").read_text() == "before\n"
    )
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", *words], cwd=checkout, check=True)
    (checkout / "launch/a.py").write_bytes(b"after \xe9\n")  # not UTF-8
    (checkout / "launch/b.py").write_text("")
    commit = snapshot.take_snapshot(tmp_path / "2")
    assert (
        commit
        == subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True
        ).stdout.strip()
    )
    assert (tmp_path / "2/commit.txt").read_text() == f"{commit}\n"
    changes = (tmp_path / "2/changes.diff").read_text()
    assert "-before\n+after" in changes and changes.endswith("launch/b.py\n")


# --- reports


def seen(**changes) -> dict:
    """What a fit rank tells of itself."""
    common = {
        "host": "n1",
        "rank": 0,
        "device": "CPU",
        "bandwidth": 2.5,
        "dali": "",
        "seen": 0.01,
        "skew": 0.001,
        "versions": {"torch": "2.11"},
    }
    return {**common, **changes}


def test_fit_nodes_give_a_line_each_and_no_problem(capsys):
    assert check._report([seen(), seen(rank=1, bandwidth=1.25), seen(host="n2", rank=2)]) == []
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 2
        and lines[0].startswith("n1: ranks 0, 1, CPU, all_reduce 1.25 GB/s, DALI decodes")
        and lines[1].startswith("n2: ranks 2,")
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seen": None}, "n2 does not see a file"),
        ({"skew": -3.0}, r"n2: its clock is -3\.0 s off"),
        ({"dali": "DALI does not decode: x"}, "n2: DALI does not decode: x"),
        ({"versions": {"torch": "2.12"}}, r"n2 has other versions than rank 0: .*2\.12"),
    ],
)
def test_an_unfit_node_is_named(changes, words, capsys):
    (problem,) = check._report(
        [seen(), seen(host="n2", rank=1, **changes), seen(host="n2", rank=2)]
    )
    assert re.search(words, problem) and len(capsys.readouterr().out.splitlines()) == 2


def test_the_scaling_table_counts_from_the_fewest_nodes_measured(tmp_path):
    files = {nodes: tmp_path / f"{nodes}.json" for nodes in (1, 2, 4, 8)}
    for nodes, rate in {2: 2000.0, 4: 3600.0}.items():  # 1 and 8 did not complete
        result = {
            "ranks": nodes * 8,
            "synthetic": {"images_per_s": rate + 1},
            "loader": {"images_per_s": rate + 2.25},
            "end_to_end": {"images_per_s": rate},
        }
        files[nodes].write_text(json.dumps(result))
    with open(tmp_path / "shown", "w") as shown:
        show_scaling(files, tmp_path / "scaling.md", Console(file=shown, width=200))
    assert (tmp_path / "scaling.md").read_text().splitlines() == [
        (
            "| nodes | ranks | synthetic, images/s | loader, images/s | end to end, images/s |"
            " efficiency |"
        ),
        "| --- | --- | --- | --- | --- | --- |",
        "| 2 | 16 | 2,001.0 | 2,002.2 | 2,000.0 | 1.00 |",
        "| 4 | 32 | 3,601.0 | 3,602.2 | 3,600.0 | 0.90 |",
    ]
    assert "0.90" in (tmp_path / "shown").read_text()


def test_nothing_measured_is_no_table(tmp_path):
    show_scaling({1: tmp_path / "1.json"}, tmp_path / "scaling.md", Console())
    assert not list(tmp_path.iterdir())


# --- the command line, on a host without Slurm


@pytest.fixture
def launch(tmp_path, monkeypatch, capsys):
    """Function that calls launch/slurm.py with these words in an empty folder: (exit status,
    stdout, stderr).
    """
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["launch/slurm.py", *words])
        status = exit_status("launch/slurm.py", slurm.main)
        assert not list(Path().iterdir())  # nothing is written
        return status, *capsys.readouterr()

    return call


def test_a_dry_run_prints_the_script_of_every_stage(launch, tmp_path):
    status, out, errors = launch(
        "demo", "--dry-run", "--nodes", "2", "--after", "99", "moco:epochs=2"
    )
    assert (status, errors) == (0, "")
    root = tmp_path / "here" / "runs" / "demo" / "slurm" / "1"
    assert "# site nodes: 2\n" in out and out.count("#!/bin/bash") == 5
    for name, waits in {
        "data": "afterok:99",
        "moco": "'afterok:<job of data>'",
        "crt": "'afterok:<job of pretrained>'",
    }.items():
        assert (
            f"#SBATCH --job-name={name}\n" in out
            and f"{root / name}\n" in out
            and f"#SBATCH --dependency={waits}\n" in out
        )
    assert "# stage moco, after data" in out


def test_a_dry_run_of_a_pipeline_with_parameters(launch):
    status, out, errors = launch("cifar10_lt_rotation_ldam_drw_100", "--dry-run", "--nodes", "2")
    assert (
        (status, errors) == (0, "")
        and out.count("#!/bin/bash") == 4
        and "# stage evaluate, after train" in out
    )


def test_list_needs_no_slurm(launch):
    status, out, errors = launch("--list")
    assert (
        (status, errors) == (0, "")
        and "cifar10_lt_rotation_ldam_drw_100" in out
        and "+ldam_drw" in out
    )


def test_a_dry_run_of_a_config_for_seeds(launch, tmp_path):
    status, out, _ = launch("moco_demo", "--dry-run", "--array-seeds", "3-4")
    assert status == 0 and [
        f"{tmp_path}/here/runs/moco_demo-seed{seed}/slurm/1/moco_demo\n" in out
        for seed in (2, 3, 4, 5)
    ] == [False, True, True, False]
    assert out.count("#!/bin/bash") == 2 and "--dependency" not in out
    assert launch("moco_demo", "--dry-run", "--array-seeds", "7")[1].count("#!/bin/bash") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo"], "this host has no Slurm.*launch/local.py"),
        (["--check"], "this host has no Slurm"),
        (["moco_demo", "--benchmark"], "this host has no Slurm"),
        (["status", "x"], "'x' has no submitted jobs"),
        (["cancel", "x"], "'x' has no submitted jobs"),
        ([], "name a config or a pipeline, or give --check or --list"),
        (["--nodes", "2"], "name a config or a pipeline, or give --check or --list"),
        (["--dry-run", "--check"], "--dry-run .*does not go with --check"),
        (["--dry-run", "--benchmark", "moco_demo"], "--dry-run .*does not go with"),
        (["demmo", "--dry-run"], "did you mean 'demo'"),
        (
            ["cifar10_lt_rotation_ldamdrw_100", "--dry-run"],
            "did you mean 'cifar10_lt_rotation_ldam_drw_100'",
        ),
        (["demo", "--dry-run", "epoch=1"], "unknown key 'epoch'"),
        (["demo", "--dry-run", "--nodes", "0"], "--nodes must be at least 1"),
        (["demo", "--dry-run", "--time", "soon"], "--time must be HH:MM:SS"),
        (["demo", "--dry-run", "--gpus-per-node", "0"], "--gpus-per-node is 0"),
        (["demo", "--dry-run", "--site", "nowhere.yaml"], r"cannot read nowhere\.yaml"),
        *(
            (["demo", "--dry-run", "--array-seeds", seeds], "--array-seeds must be like 0-4")
            for seeds in ("4-0", "a", "0-", "1-2-3", "")
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(launch, words, message):
    status, out, errors = launch(*words)
    assert (status, out, errors.count("\n")) == (2, "", 1) and re.match(
        f"launch/slurm.py: error: .*{message}", errors
    )


def test_the_script_itself_says_that_there_is_no_slurm(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / "slurm.py", "demo"],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and done.stderr == f"launch/slurm.py: error: {NO_SLURM}\n"
        and not list(tmp_path.iterdir())
    )

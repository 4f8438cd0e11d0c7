"""Sites: files, options, times, environment."""

from pathlib import Path

import pytest

from launch.sites import Site, apply, environment, load_site, parse_time
from lt_train.errors import UserError
from tests.launch.helpers import one_line


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
        ('partition: "a\\nb"', "partition must be one line of text"),
        ('sbatch: {comment: "a\\nb"}', "sbatch.comment must be one line of text"),
        ("environment: {A-B: 1}", "'A-B' is not the name of a variable"),
        ("- nodes", "'key: value' lines"),
        ("nodes: [", "cannot read"),
    ],
)
def test_a_mistake_in_the_site_file_names_file_and_key(site_file, text, words):
    with pytest.raises(UserError, match=rf"site\.yaml.*{words}|{words}.*site\.yaml") as caught:
        load_site(site_file(text + "\n"), {})
    one_line(caught)


def test_texts_are_kept_as_typed_and_references_are_the_shell_s(site_file, monkeypatch):
    text = "partition: 007\nmem_per_gpu: 0032\naccount: 1e3\nqos: off\n"
    text += "environment: {A: 1e3, B: on, C: 0x1f, D: '${WHERE}/tmp', ON: 1}\n"
    text += "setup: ['export T=${TMPDIR:-/tmp}', 'echo \\${', 12:30]\nsbatch: {exclusive: true}\n"
    site = load_site(site_file(text), {"constraint": "${x}"})
    assert (site.partition, site.mem_per_gpu) == ("007", "0032")
    assert (site.account, site.qos, site.constraint) == ("1e3", "off", "${x}")
    assert site.setup == ("export T=${TMPDIR:-/tmp}", "echo \\${", "12:30")
    assert site.sbatch == {"exclusive": True}
    monkeypatch.setenv("WHERE", "/scratch")
    own = {"A": "1e3", "B": "on", "C": "0x1f", "D": "/scratch/tmp", "ON": "1"}
    assert environment(site).items() >= own.items()


def test_home_is_expanded_in_the_site_file_s_name(site_file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    site_file("nodes: 3\n")
    assert load_site(Path("~/site.yaml"), {}).nodes == 3


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


def test_a_home_that_cannot_be_looked_into_is_one_line(monkeypatch):
    monkeypatch.setenv("HOME", f"/{'x' * 300}")
    with pytest.raises(UserError, match="cannot read .*site.yaml: File name too long; name anoth"):
        load_site(None, {})
    assert load_site(Path("/dev/null"), {}) == Site()

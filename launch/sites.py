"""What a cluster wants of every job: a small YAML that the user keeps, and command-line options
over it.
"""

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lt_train.config.load import read_yaml
from lt_train.errors import UserError, nearest, unreadable

SITE_FILE = Path("~/.config/lt-train/site.yaml")
NETWORK_DEFAULTS = {  # of jobs on several nodes; the site file's `environment` goes over them
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    # the flight recorder: what every rank was doing when a collective hung
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}
TIME = r"(?:(\d+)-(\d+)(?::(\d+)(?::(\d+))?)?|(?:(\d+):)?(\d+):(\d+)|(\d+))"
ONE_LINE = ("partition", "account", "qos", "constraint", "python")
LEAST = {
    "nodes": 1,
    "cpus_per_gpu": 1,
    "signal_before_end": 1,
    "max_requeues": 0,
    "cpu_ranks_per_node": 0,
    "gpus_per_node": 0,
}


@dataclass(frozen=True)
class Site:
    """Defaults for all jobs.

    The same names are keys of the site file and, with dashes, options of launch/slurm.py.
    """

    nodes: int = 1
    gpus_per_node: int = 8
    cpus_per_gpu: int = 8  # also the cores of a CPU rank
    mem_per_gpu: Optional[str] = None  # such as 32G; also the memory of a CPU rank
    cpu_ranks_per_node: int = 0  # more than 0: no GPUs, so many ranks a node
    partition: Optional[str] = None
    account: Optional[str] = None
    qos: Optional[str] = None
    constraint: Optional[str] = None
    time: str = "24:00:00"  # of one job; a longer run goes on in the next
    max_requeues: int = 100  # restarts of any kind; three without a new checkpoint end a job too
    signal_before_end: int = 180  # seconds before the time limit at which ranks save and leave
    setup: tuple[str, ...] = ()  # shell lines before anything runs, such as `module load cuda`
    # of all ranks, such as NCCL_SOCKET_IFNAME
    environment: dict[str, str] = field(default_factory=dict)
    # any other option of sbatch; true: one without a value
    sbatch: dict[str, Any] = field(default_factory=dict)
    python: Optional[str] = None  # how to start Python on the nodes; default: this interpreter

    @property
    def ranks_per_node(self) -> int:
        return self.cpu_ranks_per_node or self.gpus_per_node

    @property
    def minutes(self) -> int:
        return parse_time(self.time)


def load_site(file: Path | None, options: dict[str, Any]) -> Site:
    """The site file (``file``, or ~/.config/lt-train/site.yaml if there is one) with ``options``
    over it, checked.
    """
    path = Path(os.path.expanduser(file if file is not None else SITE_FILE))
    try:
        is_there = file is not None or path.is_file()
    except OSError as error:  # a home that may not be looked into
        message = f"cannot read {path}: {error.strerror}; name another file with --site"
        raise unreadable(error, message) from error
    content = read_yaml(path, Site) if is_there else {}
    return apply(Site(), content, f"{path}: ", options)


def apply(site: Site, content: dict[str, Any], origin: str, options: dict[str, Any]) -> Site:
    """``site`` with ``content``, whose errors begin with ``origin``, and ``options`` over it."""
    known = [item.name for item in dataclasses.fields(Site)]
    for key in content:
        if key not in known:
            raise UserError(
                f"{origin}unknown key '{key}'{nearest(str(key), known)}; known: {', '.join(known)}"
            )
    merged = OmegaConf.structured(site)
    OmegaConf.set_readonly(merged, False)
    given = {key: value for key, value in options.items() if value is not None}
    try:
        for layer in (content, given):
            merged = OmegaConf.merge(merged, _literal(layer))
        made = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        where = f"{origin}{key}: " if key else origin
        raise UserError(f"{where}{str(error).splitlines()[0]}") from error
    made = dataclasses.replace(made, setup=tuple(made.setup))
    names = {key: f"{origin}{key}" for key in known}
    names |= {key: f"--{key.replace('_', '-')}" for key in given}
    _check(made, names)
    return made


def _literal(value: Any) -> Any:
    """``value`` for OmegaConf, which is to leave ``${NAME}`` to the shell."""
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(inner) for inner in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value)
    return value


def _check(site: Site, names: dict[str, str]) -> None:
    """What types cannot say; ``names`` are the keys as the user gave them."""
    for key, least in LEAST.items():
        if getattr(site, key) < least:
            raise UserError(f"{names[key]} must be at least {least}, not {getattr(site, key)}")
    if not site.ranks_per_node:
        raise UserError(
            f"{names['gpus_per_node']} is 0: give cpu_ranks_per_node for jobs without GPUs"
        )
    if site.mem_per_gpu is not None and not re.fullmatch(r"\d+[KMGT]?", site.mem_per_gpu):
        raise UserError(
            f"{names['mem_per_gpu']} must be a number with K, M, G or T, not '{site.mem_per_gpu}'"
        )
    parse_time(site.time, names["time"])
    texts = {names[key]: getattr(site, key) for key in ONE_LINE}
    for option, value in site.sbatch.items():
        texts |= {f"{names['sbatch']}.{option}": value, f"{names['sbatch']}: {option!a}": option}
    for name, text in texts.items():
        if isinstance(text, str) and not text.isprintable():
            raise UserError(f"{name} must be one line of text, not {text!a}")
    for name in site.environment:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise UserError(
                f"{names['environment']}: '{name}' is not the name of a variable: "
                "letters, digits and _, the first no digit"
            )


def parse_time(text: str, name: str = "time") -> int:
    """Minutes, rounded up, of Slurm's ``[[days-]hours:]minutes:seconds``, ``days-hours[:minutes]``
    or plain ``minutes``.
    """
    match = re.fullmatch(TIME, text)
    if not match:
        raise UserError(f"{name} must be HH:MM:SS, D-HH:MM:SS or minutes, not '{text}'")
    days, *parts = (int(part or 0) for part in match.groups())
    with_days, without = parts[:3], parts[3:6]  # one of them zeros
    hours, minutes, seconds = map(sum, zip(with_days, without))
    total = (days * 24 + hours) * 60 + minutes + parts[6] + -(-seconds // 60)
    if total < 1:
        raise UserError(f"{name} must be at least a minute, not '{text}'")
    return total


def environment(site: Site) -> dict[str, str]:
    """What the jobs' shells export."""
    cores = {"OMP_NUM_THREADS": str(site.cpus_per_gpu)}
    network = NETWORK_DEFAULTS if site.nodes > 1 else {}
    own = {key: os.path.expandvars(value) for key, value in site.environment.items()}
    return {**cores, **network, **own}

"""A real Slurm cluster of several nodes on this host, without systemd: munge, MariaDB, slurmdbd,
slurmctld and a slurmd a node.

Everything lies in one folder, and nothing is left when it is stopped. Each slurmd has its own host
name and hosts file (`unshare`), so that nodes are told apart and found by name. Needs root and
Debian's slurm-wlm, munge, slurmdbd and mariadb-server.
"""

import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "mysql_install_db", "unshare")
FIRST_ADDRESS = 11  # 127.0.0.11 is n1
PATIENCE = 60.0  # seconds that a daemon may take to start or stop
DISK = "256m"

SLURM_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/run/munge.sock,cred_expire=5
SlurmctldPort={controller}
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=300
SlurmctldTimeout=30
SlurmdTimeout=30
MessageTimeout=15
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting}
AccountingStoragePass={root}/run/munge.sock
{nodes}
PartitionName=DEFAULT Nodes=n[1-{number}] MaxTime=INFINITE State=UP
PartitionName=normal Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=urgent PriorityTier=9 PreemptMode=OFF
"""
NODE = (
    "NodeName={name} NodeAddr={address} NodeHostname={name} Port={port} CPUs=8 Boards=1"
    " SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=8000 Gres=gpu:4"
)
DBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting}
SlurmUser=root
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=accounting
"""


class Cluster:
    """Nodes n1, n2, ... with 8 cores and 4 pretended GPUs each.

    ``environment`` is what Slurm's commands need.
    """

    def __init__(self, root: Path, nodes: int):
        self.root, self.nodes = root, [f"n{number + 1}" for number in range(nodes)]
        self.disk = root / "disk"  # a small file system of its own, which all nodes see
        self.environment = {**os.environ, "SLURM_CONF": str(root / "etc" / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        spools = [f"spool/{node}" for node in self.nodes]
        for name in ("etc", "run", "log", "state", "dev", "disk", *spools):
            (self.root / name).mkdir(parents=True)
        self.root.chmod(0o755)  # munged refuses a folder that others cannot enter
        self._configure()
        self._start_accounting()
        self.start_controller()
        # before the nodes have mounts of their own, or they would not see it
        self.run("mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(self.disk))
        for node in self.nodes:
            self.start_node(node)
        self.wait_until_idle()

    def run(self, *command: str, check: bool = True) -> str:
        """What a command prints; both streams where it may fail."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def wait_until_idle(self) -> None:
        """Wait for all nodes to be up and free."""
        states, idle = ("sinfo", "-h", "-p", "normal", "-N", "-o", "%T"), ["idle"] * len(self.nodes)
        wait_for(lambda: self.run(*states).split() == idle, "idle nodes")

    def clear(self) -> None:
        """Cancel all jobs and bring all nodes back."""
        self.run("scancel", "-u", "root")
        for node in self.nodes:
            self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        wait_for(lambda: not self.run("squeue", "-h").strip(), "an empty queue")
        self.wait_until_idle()

    def stop(self) -> None:
        """Stop the daemons, nodes first."""
        for name in (*self.nodes, "slurmctld", "slurmdbd", "mariadbd", "munged"):
            self._end(name)
        self.run("umount", "--lazy", str(self.disk), check=False)

    def start_node(self, node: str) -> None:
        steps = (
            f"mount --make-rprivate / && mount --bind {self.root}/etc/hosts /etc/hosts &&"
            f" hostname {node} && exec slurmd -D -N {node}"
        )
        self._spawn(node, "unshare", "-m", "-u", "sh", "-c", steps)

    def kill_node(self, node: str) -> None:
        """SIGKILL to its slurmd: Slurm has lost the node, but what runs there goes on."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()

    def start_controller(self) -> None:
        self._spawn("slurmctld", "slurmctld", "-D")
        wait_for(lambda: " is UP" in self.run("scontrol", "ping", check=False), "slurmctld")

    def stop_controller(self) -> None:
        """Nodes and jobs go on without it."""
        self._end("slurmctld")

    def _end(self, name: str) -> None:
        daemon = self.daemons.pop(name, None)
        if daemon is None:
            return
        daemon.terminate()
        try:
            daemon.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()

    def _configure(self) -> None:
        etc = self.root / "etc"
        controller, self.accounting, *ports = free_ports(2 + len(self.nodes))
        addresses = {
            node: f"127.0.0.{FIRST_ADDRESS + number}" for number, node in enumerate(self.nodes)
        }
        nodes = "\n".join(
            NODE.format(name=node, address=addresses[node], port=port)
            for node, port in zip(self.nodes, ports)
        )
        (etc / "slurm.conf").write_text(
            SLURM_CONF.format(
                host=socket.gethostname(),
                root=self.root,
                controller=controller,
                accounting=self.accounting,
                nodes=nodes,
                number=len(self.nodes),
            )
        )
        for number in range(4):
            os.mknod(self.root / "dev" / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (etc / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName={','.join(self.nodes)} Name=gpu"
            f" File={self.root}/dev/gpu[0-3]\n"
        )
        (etc / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\nConstrainCores=no\nConstrainRAMSpace=no\nConstrainDevices=no\n"
        )
        named = "".join(f"{address} {node}\n" for node, address in addresses.items())
        (etc / "hosts").write_text(Path("/etc/hosts").read_text() + named)
        (etc / "slurmdbd.conf").write_text(
            DBD_CONF.format(root=self.root, accounting=self.accounting)
        )
        (etc / "slurmdbd.conf").chmod(0o600)
        (etc / "munge.key").write_bytes(os.urandom(1024))
        (etc / "munge.key").chmod(0o400)

    def _start_accounting(self) -> None:
        root = self.root
        self._spawn(
            "munged",
            "munged",
            "-F",
            f"--socket={root}/run/munge.sock",
            f"--key-file={root}/etc/munge.key",
            f"--pid-file={root}/run/munged.pid",
            f"--log-file={root}/log/munged.log",
            f"--seed-file={root}/run/munged.seed",
        )
        wait_for((root / "run" / "munge.sock").exists, "munged")
        self.run(
            "mysql_install_db",
            "--no-defaults",
            f"--datadir={root}/mysql",
            "--user=root",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        )
        database = f"--socket={root}/run/mysql.sock"
        self._spawn(
            "mariadbd",
            "mariadbd",
            "--no-defaults",
            f"--datadir={root}/mysql",
            "--user=root",
            database,
            f"--pid-file={root}/run/mysql.pid",
            "--skip-networking",
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-lock-wait-timeout=900",
        )
        ping = ("mysqladmin", "--no-defaults", "-uroot", database, "ping")
        wait_for(lambda: "alive" in self.run(*ping, check=False), "mariadbd")
        self.environment["MYSQL_UNIX_PORT"] = f"{root}/run/mysql.sock"
        self._spawn("slurmdbd", "slurmdbd", "-D")
        wait_for(
            lambda: "error" not in self.run("sacctmgr", "-n", "list", "cluster", check=False),
            "slurmdbd",
        )
        self.run("sacctmgr", "-i", "add", "cluster", "tests")

    def _spawn(self, name: str, program: str, *arguments: str) -> None:
        environment = {**self.environment, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        with open(self.root / "log" / f"{name}.out", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.root,
                start_new_session=True,
            )


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports


def wait_for(
    condition: Callable[[], bool], what: str, seconds: float = PATIENCE, every: float = 0.1
) -> None:
    """Wait until the condition holds, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(every)

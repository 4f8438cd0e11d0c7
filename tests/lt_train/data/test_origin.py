"""Sets behind URLs: a real S3 server and plain HTTP ones, which fail now and then, or for good."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

from lt_train.data import origin
from lt_train.data.dataset import read_dataset
from lt_train.data.node_cache import NodeCache
from lt_train.distributed import World
from lt_train.errors import MachineFault, UserError
from tests.helpers.commands import content
from tests.helpers.file_servers import CUT, Fault, FileServer, serving
from tests.helpers.loading import WHOLE, assert_same_batches, configure, train

KEYS = {"key": "k", "secret": "s"}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(origin, "WAITS", (0.01, 0.02, 0.04))


@pytest.fixture(scope="module")
def moto(small):
    """Port of an S3 server whose bucket ``bucket`` holds the small set in ``sets/small``."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="k",
        aws_secret_access_key="s",
    )
    client.create_bucket(Bucket="bucket")
    for path in small.root.iterdir():
        client.upload_file(str(path), "bucket", f"sets/small/{path.name}")
    yield port
    server.stop()


@pytest.fixture
def s3(moto, monkeypatch) -> FileServer:
    """What stands before the S3 server; the driver is told of it as by the user's files."""
    with serving(("127.0.0.1", moto)) as server:
        told = KEYS | {"endpoint_url": server.url}
        monkeypatch.setitem(fsspec.config.conf, "s3", told)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # else the driver's library asks again itself
        yield server


@pytest.fixture
def http(small) -> FileServer:
    with serving(small.root.parent) as server:
        yield server


def copy(url: str, target: Path) -> dict[str, str]:
    """sha256 of the copy's files, by name."""
    folder = NodeCache([url], target, None, World()).folders[url]
    return {name: digest for name, digest in content(folder).items() if not name.startswith(".")}


def expected(root: Path) -> dict[str, str]:
    """What a copy must be of: all that data_prep has written, but for what no training reads."""
    kinds = (".tar", ".arrow", "dataset.json")
    return {name: digest for name, digest in content(root).items() if name.endswith(kinds)}


def test_a_set_in_a_bucket_gives_the_same_batches(small, s3, tmp_path):
    config = configure("s3://bucket/sets/small", "resident", WHOLE)
    config = replace(config, data=replace(config.data, cache_dir=str(tmp_path)))
    assert_same_batches(train(config), train(configure(small.root, "resident", WHOLE)))


def at_first(fault: int) -> Fault:
    """Of two requests for each file."""
    asked = Counter()

    def found(number: int, path: str) -> int | None:
        asked[path] += 1
        return fault if asked[path] <= 2 else None

    return found


@pytest.mark.parametrize("fault", [503, 429, CUT])
@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_server_that_fails_now_and_then_is_asked_again(kind, fault, small, s3, http, tmp_path):
    server, url = {"s3": (s3, "s3://bucket/sets/small/"), "http": (http, f"{http.url}/set")}[kind]
    server.fault = at_first(fault)
    assert copy(url, tmp_path) == expected(small.root)
    assert set(Counter(server.seen).values()) == {3}


def test_what_was_copied_is_not_asked_for_again(small, http, tmp_path):
    first = copy(f"{http.url}/set", tmp_path)
    (damaged,) = tmp_path.glob("*/train-000001.tar")
    damaged.write_bytes(damaged.read_bytes()[::-1])
    http.seen.clear()
    assert copy(f"{http.url}/set", tmp_path) == first
    assert http.seen == ["/set/dataset.json", "/set/train-000001.tar"]


@pytest.mark.parametrize("first", [1, 4], ids=["dataset.json", "shards"])
def test_a_server_that_goes_on_failing_is_no_mistake_of_the_user(first, http, tmp_path):
    http.fault = lambda number, path: 503 if number >= first else None
    with pytest.raises(MachineFault, match=f"cannot read {http.url}/set/.* 503.* tried 4 times"):
        copy(f"{http.url}/set", tmp_path)


def test_a_server_that_is_not_there_is_no_mistake_of_the_user(http, tmp_path):
    with serving(tmp_path) as gone:
        pass
    with pytest.raises(MachineFault, match=f"cannot read {gone.url}/set/dataset.json"):
        copy(f"{gone.url}/set", tmp_path)


def test_a_body_that_always_ends_early_is_no_mistake_of_the_user(small, http, tmp_path):
    http.fault = lambda number, path: CUT if path.endswith("train-000000.tar") else None
    with pytest.raises(MachineFault, match="train-000000.tar"):
        copy(f"{http.url}/set", tmp_path)
    assert not list(tmp_path.rglob("train-000000.tar"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://nobody/sets/small", "there is no s3://nobody/sets/small/dataset.json: is"),
        ("s3://bucket/sets/other/", "there is no s3://bucket/sets/other/dataset.json: is"),
        ("http://HTTP/other", "there is no http://.*/other/dataset.json: is"),
        ("nonsense://bucket/set", "cannot read nonsense://bucket/set: Protocol not known"),
    ],
)
def test_what_is_not_there_is_told_at_once(url, words, s3, http):
    with pytest.raises(UserError, match=words) as raised:
        read_dataset(url.replace("http://HTTP", http.url))
    assert raised.value.status == 2 and len(http.seen) <= 1


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_what_is_not_permitted_is_told_at_once(kind, s3, http):
    server, url = {"s3": (s3, "s3://bucket/sets/small"), "http": (http, f"{http.url}/set")}[kind]
    server.fault = lambda number, path: 403
    with pytest.raises(UserError, match=f"cannot read {url}/dataset.json: .*right to read") as told:
        read_dataset(url)
    assert told.value.status == 2 and len(server.seen) == 1


def test_without_credentials_that_is_told_at_once(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": s3.url})
    with pytest.raises(UserError, match="dataset.json: .*credentials.*right to read") as told:
        read_dataset("s3://bucket/sets/small")
    assert told.value.status == 2 and not s3.seen


WITHOUT_DRIVERS = """
import sys
from lt_train.data.dataset import read_dataset
from lt_train.errors import UserError

sys.modules |= dict.fromkeys(("s3fs", "gcsfs", "aiohttp"))
for url in sys.argv[1:]:
    try:
        read_dataset(url)
    except UserError as error:
        print(error)
"""


def test_a_driver_that_is_not_installed_is_named():
    drivers = {"s3://bucket/x": "s3fs", "gs://bucket/x": "gcsfs", "https://host/x": "aiohttp"}
    command = [sys.executable, "-c", WITHOUT_DRIVERS, *drivers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    for line, (url, driver) in zip(done.stdout.splitlines(), drivers.items(), strict=True):
        assert line.startswith(f"cannot read {url}: ") and driver in line and "nstall" in line


def test_damage_at_the_origin_is_told(small, http, damaged_copy, tmp_path):
    damaged = damaged_copy(small.root, [0])
    with serving(damaged.parent) as server:
        url = f"{server.url}/damaged"
        with pytest.raises(UserError, match="train-000000.tar does not match its sha256") as told:
            copy(url, tmp_path / "scratch")
        assert told.value.status == 2
        (damaged / "dataset.json").write_bytes(b"<html>Please log in</html>")
        with pytest.raises(UserError, match=f"{url}/dataset.json is damaged"):
            read_dataset(url)

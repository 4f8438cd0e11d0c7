"""Commands on a set behind a URL."""

from collections.abc import Iterator

import pytest
import torch
import yaml

from tests.helpers.commands import checkpoint, evaluated, refused, run, words
from tests.helpers.file_servers import FileServer, serving


@pytest.fixture
def server(tinted) -> Iterator[FileServer]:
    with serving(tinted) as server:
        yield server


def test_a_run_on_a_url_is_the_run_on_the_folder(server, copied, tmp_path, capsys):
    folder, cache = tmp_path / "run", f"data.cache_dir={tmp_path / 'cache'}"
    run(*words("classifier_cifar10_lt", server.url, folder, cache, "max_steps=5"))
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["data"]["root"] == server.url
    ours, theirs = (checkpoint(place, 5) for place in (folder, copied))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert evaluated(folder, "--step", "5") == evaluated(copied, "--step", "5")
    server.seen.clear()
    capsys.readouterr()
    run(*words("classifier_cifar10_lt", server.url, folder, cache, "max_steps=5"))
    assert "is already done" in capsys.readouterr().err and set(server.seen) <= {"/dataset.json"}


def test_commands_that_write_beside_the_data_or_read_it_in_place_want_a_folder(trained, capsys):
    url = "s3://bucket/pool"
    said = refused(capsys, "pseudo_label", trained, "--data", url)
    assert f"writes columns beside a set's shards: copy {url} to a folder" in said
    assert f"copy {url} to a folder" in refused(capsys, "score", "classifier_demo", "--pool", url)


def test_without_a_folder_to_copy_to_a_url_is_refused(tmp_path, capsys):
    said = refused(capsys, *words("classifier_cifar10_lt", "s3://bucket/set", tmp_path))
    assert "data.root=s3://bucket/set is a URL: set data.cache_dir to a local folder" in said

"""Which code it is."""

import subprocess

from lt_train.code_version import code_version, git


def test_a_checkout_has_its_commit_and_says_if_it_was_changed(tmp_path):
    assert code_version(tmp_path) == "unknown"
    package = tmp_path / "lt_train"
    package.mkdir()
    (package / "a.py").write_text("")
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for words in (["init"], ["add", "."], [*who, "commit", "-m", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    assert len(commit) == 40 and code_version(tmp_path) == commit
    (package / "b.py").write_text("")
    assert code_version(tmp_path) == f"{commit} with changes"


def test_a_snapshot_has_the_commit_of_its_submission(tmp_path):
    (tmp_path / "commit.txt").write_text("0123abcd\n")
    (tmp_path / "changes.diff").write_text("")
    assert code_version(tmp_path) == "0123abcd"
    (tmp_path / "changes.diff").write_text("-before\n+after\n")
    assert code_version(tmp_path) == "0123abcd with changes"

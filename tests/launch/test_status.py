"""How far a run is, as its metrics.jsonl tells."""

import json

import pytest

from launch.status import Progress, read_progress

TRAINED = {"step": 5, "last_step": 9, "images_per_s": 80.5, "seconds_left": 3.0, "loss": 1.0}


def test_a_run_that_has_logged_nothing_has_no_progress(tmp_path):
    assert read_progress(str(tmp_path)) is None
    (tmp_path / "metrics.jsonl").write_text("")
    assert read_progress(str(tmp_path)) is None


@pytest.mark.parametrize(
    "after",
    [
        b'{"step": 5, "split": "val", "top1": 3.0}\n',
        b'{"step": 6, "last_st',
        b"5\n",
        b"[]\n",
        b"null\n",
        b"\xff\n",
        b"[" * 10**5,
        json.dumps({**TRAINED, "step": "x"}).encode(),
        json.dumps({**TRAINED, "seconds_left": float("inf")}).encode(),
        json.dumps({**TRAINED, "seconds_left": float("nan")}).encode(),
        json.dumps({**TRAINED, "last_step": 10**400}).encode(),
    ],
    ids=lambda after: after[:40].decode("latin-1"),
)
def test_what_follows_the_last_good_line_is_passed_over(tmp_path, after):
    (tmp_path / "metrics.jsonl").write_bytes(json.dumps(TRAINED).encode() + b"\n" + after)
    assert read_progress(str(tmp_path)) == Progress(5, 9, 80.5, 3.0)

"""What the tests of configs share."""

import pytest


@pytest.fixture
def empty(tmp_path) -> str:
    """A config file that changes nothing."""
    path = tmp_path / "empty.yaml"
    path.write_text("description: nothing\n")
    return str(path)

"""These tests compute in their own process."""

from tests.helpers.ranks import one_thread  # noqa: F401 - a fixture for the whole folder

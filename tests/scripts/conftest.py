"""Fixtures of tests that train."""

from tests.train.conftest import tiny, tiny_teacher  # noqa: F401

"""Fixtures of the training tests, for the recipes."""

from tests.train.conftest import passes, short_probe, tiny_teacher  # noqa: F401

"""The tiny teacher of the training tests."""

from tests.train.conftest import tiny_teacher  # noqa: F401

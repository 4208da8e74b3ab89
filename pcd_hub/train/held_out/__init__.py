"""Scores of the student on held-out images during a run, and what they decide."""

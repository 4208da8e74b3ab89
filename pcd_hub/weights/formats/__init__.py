"""A weight in the formats of other frameworks."""

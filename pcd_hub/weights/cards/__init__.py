"""Model cards: the README.md of a weight, rendered from its record."""

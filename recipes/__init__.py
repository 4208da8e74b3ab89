"""Recipes, one short script each. Run them as files; the package marker is for import-linter."""

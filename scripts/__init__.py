"""Maintainer tools. Run them as files; the package marker is for import-linter."""

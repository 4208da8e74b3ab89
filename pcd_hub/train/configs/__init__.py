"""Configurations of every training recipe, and the command line that changes them."""

"""A list of distillations and their evaluations, run one after the other and compared.

Reading order: main.py -> plan.py (the list) -> jobs.py (one run) -> scores.py -> table.py.
"""

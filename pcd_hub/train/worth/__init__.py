"""Fine-tune several starts on shares of the user's labels, and compare them (``pcd-hub worth``).

Reading order: main.py -> plan.py (the runs) -> distilled.py (test images that were distilled on)
-> table.py -> verdict.py.
"""

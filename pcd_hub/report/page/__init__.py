"""The report of a run as one HTML page, and several runs side by side."""

"""Mean IoU of the student on labelled images during a run."""

"""Results of a finished training run: a weight, a teacher or an evaluation."""

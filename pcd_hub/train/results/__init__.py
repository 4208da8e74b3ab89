"""What a training run leaves when it is done: a weight, a teacher, or an evaluation."""

"""Results of many models in one file, one line of JSON for each model and evaluation."""

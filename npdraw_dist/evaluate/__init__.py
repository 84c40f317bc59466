"""The command `evaluate`, which measures a trained model on a data set or compares models in a table."""

"""The command `evaluate`: the numbers of a trained model on a data set, and tables of many models."""

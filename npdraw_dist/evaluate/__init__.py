"""The numbers of a trained model on a data set, by actor pools over Ray Data, and tables of many models."""

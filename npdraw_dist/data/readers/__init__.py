"""Readers of data sets. Each family of data sets has one module, which finds and reads its images."""

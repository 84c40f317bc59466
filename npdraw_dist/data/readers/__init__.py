"""Readers of data sets. Each family of data sets has one file, which finds and reads its images."""

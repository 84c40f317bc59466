"""One file per family of data sets: where its images are and how they are read."""

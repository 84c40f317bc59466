"""Launch files for clusters, and a cluster of several nodes on one machine."""

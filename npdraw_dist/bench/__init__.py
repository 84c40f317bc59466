"""The sections of `npdraw_dist.bench`: each measures one thing and returns flat figures."""

"""The environment of tests and of what they start, set before torch and Ray are imported."""

import os

# Threads that wait leave their core to others: several processes share few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray refuses to spill on a disk that is 95% full. The tests write little, on whatever disk there is.
os.environ.setdefault("RAY_local_fs_capacity_threshold", "0.999")
# Ray gives its workers niceness 15: beside the other tests they would get next to no time.
os.environ.setdefault("RAY_worker_niceness", "0")

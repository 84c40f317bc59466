"""One thread a test process: tiny tensors gain nothing from more, and machines are shared.

For the same reason no test by hypothesis fails for being slow.
"""

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

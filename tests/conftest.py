"""One thread a test process: tiny tensors gain nothing from more, and machines are shared."""

import torch

torch.set_num_threads(1)

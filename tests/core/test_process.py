"""What a process that computes keeps."""

import resource
import sys

import pytest
import torch

from npdraw_dist.core.process import device_here


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_tensor_takes_the_memory_of_one_that_is_gone() -> None:
    device = device_here(use_gpu=False)
    torch.ones(1 << 24, device=device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(1 << 24, device=device)
    pages = 4 * (1 << 26) // resource.getpagesize()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < pages // 10

"""Work in this process: torch computes with one thread, and pictures are decoded with the others too."""

import torch

from npdraw_dist.distributed.tasks import free_threads, map_items


def test_work_in_this_process_may_use_the_threads_that_torch_leaves() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert list(map_items([0, 1], lambda _: (torch.get_num_threads(), free_threads()))) == [(1, 3)] * 2
        assert free_threads() == 3
    finally:
        torch.set_num_threads(before)

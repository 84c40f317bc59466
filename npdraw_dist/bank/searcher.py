"""Exact search by FAISS on the CPU or on a GPU, whose resources are made once.

Shapes: n vectors, D dimensions.
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from npdraw_dist.core.errors import UserError

# FAISS would take 1.5 GiB of the GPU, which others may share. A chunk of patches needs 50 MB.
TEMPORARY_BYTES = 256 << 20


class Searcher:
    """Indexes of vectors. Those of a GPU are one and the same index, which holds the latest vectors only.

    gpu: use the GPU that this process holds; None: if FAISS finds one. Raises UserError if there must be one
    and FAISS finds none.
    """

    def __init__(self, gpu: bool | None) -> None:
        self.gpu = gpu is not False and faiss.get_num_gpus() > 0
        if gpu and not self.gpu:
            raise UserError("FAISS finds no GPU here; set scale.use_gpu to false")
        self._on_gpu: Any = None
        if self.gpu:
            self._resources: Any = faiss.StandardGpuResources()
            self._resources.setTempMemory(TEMPORARY_BYTES)

    def index(self, vectors: NDArray[np.float32]) -> Any:
        """The FAISS index of `vectors` (n, D), valid until the next call if it is on a GPU."""
        found = self._gpu_index(vectors.shape[1]) if self.gpu else faiss.IndexFlatL2(vectors.shape[1])
        found.add(vectors)
        return found

    def _gpu_index(self, dimensions: int) -> Any:
        """Empty."""
        if self._on_gpu is None:
            self._on_gpu = faiss.GpuIndexFlatL2(self._resources, dimensions)
        assert self._on_gpu.d == dimensions, "the patches of a shard have one size"
        self._on_gpu.reset()
        return self._on_gpu

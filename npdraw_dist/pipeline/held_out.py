"""The test images of the run in which a model lies."""

import numpy as np
from pyarrow import fs
from torch import Tensor

from npdraw_dist.core.storage import open_filesystem


class HeldOutImages:
    """The test images of the run in which a model lies; none where it lies elsewhere."""

    def __init__(self, model_folder: str) -> None:
        from npdraw_dist.data.stream import list_shards  # imports Ray, which takes seconds

        self._filesystem, path = open_filesystem(model_folder)
        folder = f"{path.rpartition('/')[0]}/parses/test"
        there = self._filesystem.get_file_info(folder).type == fs.FileType.Directory
        self._files = list_shards(self._filesystem, folder) if there else []

    def __len__(self) -> int:
        return sum(file.rows for file in self._files)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 (1, C, H, W). Raises IndexError."""
        from npdraw_dist.data.chosen import read_rows

        if not 0 <= index < len(self):
            raise IndexError(f"test image {index}; there are {len(self)}")
        return read_rows(self._files, self._filesystem, np.array([index])).images

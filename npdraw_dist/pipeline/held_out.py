"""The test images of the run that a model belongs to."""

import numpy as np
from pyarrow import fs
from torch import Tensor

from npdraw_dist.core.storage import open_filesystem
from npdraw_dist.data.parses import Parses


class HeldOutImages:
    """The test images of the run whose folder holds the model; none if it is in no run folder."""

    def __init__(self, model_folder: str) -> None:
        filesystem, path = open_filesystem(model_folder)
        folder = f"{path.rpartition('/')[0]}/parses/test"
        found = filesystem.get_file_info(folder).type == fs.FileType.Directory
        self._parses = Parses.open(filesystem, folder) if found else Parses(filesystem, ())

    def __len__(self) -> int:
        return len(self._parses)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 (1, C, H, W). Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"test image {index}; there are {len(self)}")
        return self._parses.at(np.array([index])).images

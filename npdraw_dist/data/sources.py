"""From `data.source` to its shards."""

from collections.abc import Callable
from importlib import import_module

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.shards import Source

# source -> (module of readers, function): imported when asked for, so that no set pays for another.
READERS: dict[str, tuple[str, str]] = {
    "digits": ("digits", "open_digits"),
    "mnist": ("idx", "open_idx"),
    "fashion_mnist": ("idx", "open_idx"),
    "omniglot": ("omniglot", "open_omniglot"),
    "cifar10": ("cifar", "open_cifar"),
    "celeba": ("celeba", "open_celeba"),
    "imagefolder": ("files", "open_imagefolder"),
    "webdataset": ("tars", "open_webdataset"),
    "parquet": ("tables", "open_parquet"),
}


def open_source(data: DataConfig, seed: int) -> Source:
    """The data set that `data` names, its splits drawn with `seed`. Raises UserError if not there."""
    module, function = READERS[data.source]
    opener: Callable[[DataConfig, int], Source] = getattr(
        import_module(f"npdraw_dist.data.readers.{module}"), function
    )
    return opener(data, seed)

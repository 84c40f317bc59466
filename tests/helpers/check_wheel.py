"""python -P check_wheel.py SITE SOURCE: an installed wheel is whole, and works without the repository.

SITE: the folder that it was installed to, which is on sys.path. SOURCE: the source that it was built from.
"""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import yaml

import npdraw_dist
import tune_spaces


def python(*words: str) -> str:
    command = [sys.executable, "-P", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run(*words: str) -> str:
    return python("-m", "npdraw_dist", *words)


def files(root: Path) -> set[str]:
    found = (path for name in ("npdraw_dist", "tune_spaces") for path in (root / name).rglob("*"))
    return {str(path.relative_to(root)) for path in found if path.is_file() and path.suffix != ".pyc"}


if __name__ == "__main__":
    site, source = (Path(word).resolve() for word in sys.argv[1:])
    for package in (npdraw_dist, tune_spaces):
        assert package.__file__ is not None
        assert Path(package.__file__).is_relative_to(site), package.__file__
    version = npdraw_dist.__version__
    wanted = {"npdraw_dist", "tune_spaces", f"npdraw_dist-{version}.dist-info", "bin"}
    assert {path.name for path in site.iterdir()} == wanted, "something stray, or something is missing"

    assert files(site) == files(source), files(site) ^ files(source)
    assert "npdraw_dist/py.typed" in files(site), "a type checker would see no types"
    found = metadata.metadata("npdraw_dist")
    for field in ("Summary", "Author", "License-Expression", "Keywords", "Requires-Python", "Description"):
        assert found[field], field
    assert found["Version"] == version
    assert run("--version") == f"npdraw {version}\n"
    assert "npdraw train --preset mnist_cpu" in run("train", "--help")
    assert yaml.safe_load(run("train", "--dry-run", "--preset", "emoji"))["data"]["source"] == "emoji"
    drawing = "import npdraw_dist; print(*npdraw_dist.load('emoji').draw(1).images.shape)"
    assert python("-c", drawing) == "1 3 32 32\n"
    print(f"the wheel of {version} is whole: {len(files(site))} files")

"""A hook of mkdocs that adds live.html, the page that `npdraw export-demo --model emoji` writes."""

from typing import Any

from mkdocs.structure.files import File, Files

from npdraw_dist.export_demo.page import Facts, demo_page, license_of
from npdraw_dist.pipeline.trained_models import load_npdraw
from npdraw_dist.system.model_files import model_folder

NAME = "emoji"


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the page to the files, so that other pages can link to it."""
    folder = model_folder(NAME)
    model = load_npdraw(folder)
    page = demo_page(model, Facts("Emoji", license_of(folder), model.spec.temperature, 1))
    files.append(File.generated(config, "live.html", content=page))
    return files

"""A hook of mkdocs: live.html, the model `emoji` in the browser alone, as `npdraw export-demo` writes it."""

from typing import Any

from mkdocs.structure.files import File, Files

from npdraw_dist.core.model_files import model_folder
from npdraw_dist.export_demo.page import Facts, demo_page, license_of
from npdraw_dist.pipeline.models import load_npdraw

NAME = "emoji"


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the page, to which others can link."""
    folder = model_folder(NAME)
    model = load_npdraw(folder)
    page = demo_page(model, Facts("Emoji", license_of(folder), model.spec.temperature, 1))
    files.append(File.generated(config, "live.html", content=page))
    return files

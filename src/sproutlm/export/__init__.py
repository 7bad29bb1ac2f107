"""Models in and out: Hugging Face folders, and ``load`` for anything that holds a model."""

from .huggingface import export_run, save
from .load import load, load_state
from .read import read
from .take_in import import_folder

__all__ = ["export_run", "import_folder", "load", "load_state", "read", "save"]

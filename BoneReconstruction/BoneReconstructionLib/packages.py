"""The packages of the extension, wherever they are: in a clone, installed by pip or in 3D Slicer's module folder."""

import importlib.util
from pathlib import Path

_NAMES = ("BoneReconstructionLib", "TibiaCompletionLib", "BiplanarReconLib")


def package_folders() -> list[Path]:
    """Lists the folders of those of our packages that can be imported; imports none of them."""
    specs = [importlib.util.find_spec(name) for name in _NAMES]
    return [Path(location).resolve() for spec in specs if spec for location in spec.submodule_search_locations]

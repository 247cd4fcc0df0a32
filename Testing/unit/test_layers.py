"""The layers: imports run downwards, and each file loads without the packages that it must do without."""

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE_FOLDERS = sorted({folder.parent for folder in ROOT.glob("*/*Lib") if folder.is_dir()})
FILES = {
    ".".join(path.relative_to(folder).with_suffix("").parts): path
    for folder in MODULE_FOLDERS
    for path in sorted(folder.glob("*Lib/**/*.py"))
}
GROUND = "BoneReconstructionLib"
METHODS = ("TibiaCompletionLib", "BiplanarReconLib")
SCENES = ("BoneReconstructionLib.scene", "TibiaCompletionLib.scene", "BiplanarReconLib.scene")
COMMAND_LINE = "BoneReconstructionLib.cli"

# What importing a file may need beyond the standard library, numpy and SciPy. A file that is not named here needs no
# more, so that it runs in a Slicer without PyTorch and on a node without vtk. Name a file only after asking whether
# an import inside the function that needs it, or a smaller file, would do.
NEEDS = {
    "BoneReconstructionLib.bonecomparisons": {"vtk"},
    "BoneReconstructionLib.bonefields": {"torch"},
    "BoneReconstructionLib.comparison": {"vtk"},
    "BoneReconstructionLib.virtualknees": {"torch"},
    "BoneReconstructionLib.kneepriortraining": {"vtk"},
    "BoneReconstructionLib.ctrendering": {"torch"},
    "BoneReconstructionLib.jointphantoms": {"torch"},
    "BoneReconstructionLib.meshing": {"vtk"},
    "BoneReconstructionLib.meshraster": {"numba"},
    "BoneReconstructionLib.priortraining": {"vtk"},
    "BoneReconstructionLib.randomfields": {"torch"},
    "BoneReconstructionLib.sample": {"torch", "vtk"},
    "BoneReconstructionLib.scene": {"vtk", "slicer"},
    "BoneReconstructionLib.shearwarp": {"numba"},
    "BoneReconstructionLib.softtissue": {"torch"},
    "BoneReconstructionLib.surfacefiles": {"vtk"},
    "BoneReconstructionLib.torchprojection": {"torch"},
    "BoneReconstructionLib.virtualpatients": {"torch"},
    "BiplanarReconLib.evaluation.ctregistration": {"vtk"},
    "BiplanarReconLib.evaluation.geometryerror": {"vtk"},
    "BiplanarReconLib.evaluation.knee": {"vtk"},
    "BiplanarReconLib.evaluation.kneescenes": {"vtk"},
    "BiplanarReconLib.fieldofview": {"vtk"},
    "BiplanarReconLib.fitting.reconstruction": {"vtk"},
    "BiplanarReconLib.kneereconstruction": {"vtk"},
    "BiplanarReconLib.sampleknee": {"torch", "vtk"},
    "TibiaCompletionLib.evaluation.table1": {"torch"},
    "TibiaCompletionLib.evaluation.table1pictures": {"torch", "vtk"},
    "TibiaCompletionLib.autoencoders.evaluation": {"torch"},
    "TibiaCompletionLib.autoencoders.inference": {"torch"},
    "TibiaCompletionLib.autoencoders.network": {"torch", "monai"},
    "TibiaCompletionLib.autoencoders.pca": {"torch"},
    "TibiaCompletionLib.autoencoders.training": {"torch"},
    "TibiaCompletionLib.case": {"vtk"},
    "TibiaCompletionLib.completion": {"vtk"},
    "TibiaCompletionLib.evaluation.baselines": {"vtk"},
    "TibiaCompletionLib.evaluation.cases": {"vtk"},
    "TibiaCompletionLib.evaluation.confidence": {"vtk"},
    "TibiaCompletionLib.evaluation.finding": {"vtk"},
    "TibiaCompletionLib.evaluation.foreignrenderer": {"vtk"},
    "TibiaCompletionLib.evaluation.fragmentcases": {"vtk"},
    "TibiaCompletionLib.evaluation.fragments": {"vtk"},
    "TibiaCompletionLib.evaluation.legscenes": {"vtk"},
    "TibiaCompletionLib.evaluation.motions": {"vtk"},
    "TibiaCompletionLib.evaluation.otherleg": {"torch", "vtk"},
    "TibiaCompletionLib.evaluation.people": {"vtk"},
    "TibiaCompletionLib.evaluation.pictures": {"vtk"},
    "TibiaCompletionLib.evaluation.runner": {"vtk"},
    "TibiaCompletionLib.evaluation.scans": {"vtk"},
    "TibiaCompletionLib.evaluation.scoring": {"vtk"},
    "TibiaCompletionLib.evaluation.tibia": {"vtk"},
    "TibiaCompletionLib.masksuggestion": {"vtk"},
    "TibiaCompletionLib.measuring": {"vtk"},
    "TibiaCompletionLib.tibiafinding": {"vtk"},
    "TibiaCompletionLib.tibiasearch": {"vtk"},
    "TibiaCompletionLib.tibiasegment": {"vtk"},
    "TibiaCompletionLib.fragments.command": {"vtk"},
    "TibiaCompletionLib.fragments.reduction": {"vtk"},
    "TibiaCompletionLib.fragments.results": {"vtk"},
    "TibiaCompletionLib.fragments.splitcommand": {"vtk"},
    "TibiaCompletionLib.fragments.splitting": {"vtk"},
    "TibiaCompletionLib.fragments.target": {"vtk"},
    "TibiaCompletionLib.imagelosses": {"torch"},
    "TibiaCompletionLib.networkmodels": {"torch"},
    "TibiaCompletionLib.precision": {"torch"},
    "TibiaCompletionLib.randommasks": {"torch"},
    "TibiaCompletionLib.registration.evaluation": {"torch"},
    "TibiaCompletionLib.registration.inference": {"torch"},
    "TibiaCompletionLib.registration.network": {"torch"},
    "TibiaCompletionLib.registration.refinement": {"torch"},
    "TibiaCompletionLib.registration.training": {"torch"},
    "TibiaCompletionLib.shaperegression.inference": {"torch"},
    "TibiaCompletionLib.shaperegression.network": {"torch"},
    "TibiaCompletionLib.shaperegression.training": {"torch"},
    "TibiaCompletionLib.training": {"torch"},
    "TibiaCompletionLib.trainingcts": {"torch"},
    "TibiaCompletionLib.trainingdata": {"torch"},
    "TibiaCompletionLib.trainingloop": {"torch"},
    "TibiaCompletionLib.scanend": {"vtk"},
}
IMPORT_NAMES = {"vtk": {"vtk", "vtkmodules"}}
OPTIONAL = {"torch", "monai", "tensorboard", "vtk", "SimpleITK", "pydicom", "numba", "slicer", "qt", "ctk"}
NOT_AT_RUN_TIME = {"safetensors", "psutil", "pytest", "host"}

IMPORTER = """
import importlib, json, sys

names, blocked = json.loads(sys.argv[1])

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"it imports {name}", name=name)

sys.meta_path.insert(0, Blocker())
failures = {}
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        failures[name] = repr(error)
print(json.dumps(failures))
"""


def needs_of(name):
    return frozenset(NEEDS.get(name, ()))


@cache
def import_failures(needs, names):
    """Imports files in one process where every optional package except those needed is blocked."""
    blocked = set().union(*(IMPORT_NAMES.get(package, {package}) for package in OPTIONAL - needs)) | NOT_AT_RUN_TIME
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, MODULE_FOLDERS))}
    result = subprocess.run(
        [sys.executable, "-c", IMPORTER, json.dumps([names, sorted(blocked)])],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        timeout=120,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def files_with(needs):
    return tuple(name for name in FILES if needs_of(name) == needs and not imports_any(name, "slicer.i18n"))


def imported_by(name):
    """All modules that a file imports, anywhere in it, by their full names."""
    path = FILES[name]
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def is_scene(name):
    return any(f"{name}.".startswith(f"{scene}.") for scene in SCENES)


def imports_any(name, *unwanted):
    return sorted(
        module for module in set(imported_by(name)) if any(f"{module}.".startswith(f"{other}.") for other in unwanted)
    )


every_file = pytest.mark.parametrize("name", list(FILES))
# What translates its texts loads in Slicer only, and in the test host, where the panels' tests load it.
every_file_outside_slicer = pytest.mark.parametrize(
    "name", [name for name in FILES if not any(imports_any(name, "slicer.i18n"))]
)


def test_the_files_were_found():
    assert "BoneReconstructionLib.errors" in FILES
    assert NEEDS.keys() <= FILES.keys()


@every_file_outside_slicer
def test_each_file_loads_without_the_packages_that_it_must_do_without(name):
    needs = needs_of(name)
    failures = import_failures(needs, files_with(needs))
    assert name not in failures, f"{name} does not load: {failures[name]}; see NEEDS"


@every_file
def test_only_the_scene_bridge_knows_slicer_and_nothing_here_knows_widgets(name):
    assert imports_any(name, "qt", "ctk", *(() if is_scene(name) else ("slicer",))) == []


@every_file
def test_nothing_at_run_time_needs_a_package_for_tests(name):
    assert imports_any(name, *NOT_AT_RUN_TIME) == []


@every_file
def test_imports_run_downwards(name):
    package = name.partition(".")[0]
    above = [method for method in METHODS if method != package]
    if not is_scene(name):
        above += SCENES
    if name not in (COMMAND_LINE, f"{GROUND}.__main__"):
        above.append(COMMAND_LINE)
    assert imports_any(name, *above) == []


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("__init__")])
def test_package_files_are_empty(name):
    assert FILES[name].read_bytes() == b""


@pytest.mark.parametrize("name", list(NEEDS))
def test_a_file_that_is_said_to_need_a_package_does_not_load_without_any(name):
    assert "it imports" in import_failures(frozenset(), tuple(NEEDS)).get(name, "it loads")

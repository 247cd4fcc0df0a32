"""A real build installs what the CMake lists name, flat into one folder: the lists must match the disk."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("BoneReconstruction", "TibiaCompletion", "BiplanarRecon")


def listed(module, variable):
    """Entries of a CMake list of a module, with MODULE_NAME filled in."""
    text = re.sub(r"#.*", "", (ROOT / module / "CMakeLists.txt").read_text())
    body = re.search(rf"set\(\s*{variable}\s([^)]*)\)", text).group(1)
    return body.replace("${MODULE_NAME}", module).split()


def files(folder, module, keep):
    return sorted(str(path.relative_to(ROOT / module)) for path in folder.rglob("*")
                  if path.is_file() and "__pycache__" not in path.parts and keep(path))


@pytest.mark.parametrize("module", MODULES)
def test_every_python_file_is_listed_and_every_listed_file_exists(module):
    folder = ROOT / module
    disk = [f"{module}.py", *files(folder / f"{module}Lib", module, lambda path: path.suffix == ".py")]
    assert sorted(listed(module, "MODULE_PYTHON_SCRIPTS")) == sorted(disk)


@pytest.mark.parametrize("module", MODULES)
def test_every_resource_is_listed_and_every_listed_file_exists(module):
    folder = ROOT / module
    disk = files(folder / "Resources", module, lambda path: True)
    disk += files(folder / f"{module}Lib", module, lambda path: path.suffix != ".py")
    assert sorted(listed(module, "MODULE_PYTHON_RESOURCES")) == sorted(disk)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_in_a_module_folder_is_left_out_of_the_build(module):
    folder = ROOT / module
    known = {f"{module}.py", "CMakeLists.txt", f"{module}Lib", "Resources", "__pycache__"}
    assert {path.name for path in folder.iterdir() if path.suffix != ".egg-info"} <= known


def test_no_two_modules_install_a_file_of_the_same_name():
    installed = [entry for module in MODULES for variable in ("MODULE_PYTHON_SCRIPTS", "MODULE_PYTHON_RESOURCES")
                 for entry in listed(module, variable)]
    assert len(installed) == len(set(installed))


@pytest.mark.parametrize("name", ("Testing", "Lib", "tests"))
def test_no_library_package_has_a_name_that_others_use(name):
    assert not (ROOT / name / "__init__.py").exists()
    assert all(name not in entry.split("/")[:-1] for module in MODULES
               for entry in listed(module, "MODULE_PYTHON_SCRIPTS"))


def test_the_extension_adds_every_module_folder():
    text = (ROOT / "CMakeLists.txt").read_text()
    assert set(re.findall(r"add_subdirectory\((\w+)\)", text)) == {
        path.parent.name for path in ROOT.glob("*/CMakeLists.txt")}


@pytest.mark.parametrize("module", MODULES)
def test_only_keywords_that_the_build_macro_knows_are_used(module):
    text = (ROOT / module / "CMakeLists.txt").read_text()
    call = re.search(r"slicerMacroBuildScriptedModule\(([^)]*)\)", text).group(1)
    keywords = set(re.findall(r"(?<![{_A-Z])[A-Z][A-Z_]+(?![A-Z_}])", call))
    assert keywords <= {"NAME", "SCRIPTS", "RESOURCES", "WITH_GENERIC_TESTS", "WITH_SUBDIR", "VERBOSE"}


@pytest.mark.parametrize("icon", ("Resources/BoneReconstructionExtension.png",
                                  "BoneReconstruction/Resources/Icons/BoneReconstruction.png",
                                  "TibiaCompletion/Resources/Icons/TibiaCompletion.png",
                                  "BiplanarRecon/Resources/Icons/BiplanarRecon.png"))
def test_icons_are_128_pixels_square(icon):
    header = (ROOT / icon).read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")) == (128, 128)

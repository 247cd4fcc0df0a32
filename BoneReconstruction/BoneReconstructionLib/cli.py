"""The command line `bonerecon`: a table of commands, each in a module that is imported only when it is chosen.

A command's module has `add_arguments(parser)` and `run(arguments)`. Bad input ends with one sentence on the standard
error and exit status 2, a package that is not installed with one sentence and 3, Ctrl-C with 130.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from BoneReconstructionLib import jobs
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.version import VERSION

# Read when numpy is imported. Our matrix products are so small that OpenBLAS's threads mostly wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_COMMANDS = {
    "complete-tibia": (
        "TibiaCompletionLib.completion",
        "predict the healthy tibia from the CT of a fractured one",
    ),
    "find-tibia": (
        "TibiaCompletionLib.tibiafinding",
        "find and segment the tibiae in a CT",
    ),
    "suggest-mask": (
        "TibiaCompletionLib.masksuggestion",
        "propose a fracture mask for a segmented broken tibia",
    ),
    "split-fragments": (
        "TibiaCompletionLib.fragments.splitcommand",
        "tell the fragments of a segmented broken tibia apart",
    ),
    "reduce-fragments": (
        "TibiaCompletionLib.fragments.command",
        "bring the fragments of a broken tibia to their places on the predicted bone",
    ),
    "measure-tibia": (
        "TibiaCompletionLib.measuring",
        "measure length, angles and torsion of a whole tibia",
    ),
    "reconstruct-knee": (
        "BiplanarReconLib.kneereconstruction",
        "reconstruct the bones of a knee from a frontal and a lateral X-ray",
    ),
    "register-ct": (
        "BiplanarReconLib.ctregistration",
        "find the pose of a CT's bone in a frontal and a lateral X-ray",
    ),
    "compare": (
        "BoneReconstructionLib.comparison",
        "measure how far two bones differ",
    ),
    "compare-bones": (
        "BoneReconstructionLib.bonecomparisons",
        "measure how far several bones differ, each from its own counterpart",
    ),
    "simulate-xrays": (
        "BiplanarReconLib.simulation",
        "make a frontal and a lateral X-ray of a CT",
    ),
    "make-knee": (
        "BiplanarReconLib.sampleknee",
        "write the CT of a virtual knee with its true bones",
    ),
    "make-sample": (
        "BoneReconstructionLib.sample",
        "write the CT of a virtual patient with a fractured tibia",
    ),
    "evaluate tibia": (
        "TibiaCompletionLib.evaluation.tibia",
        "measure the completion of tibiae on real people's bones",
    ),
    "evaluate table1": (
        "TibiaCompletionLib.evaluation.table1",
        "make table 1 of the masked tibia completion paper",
    ),
    "evaluate registration": (
        "TibiaCompletionLib.registration.evaluation",
        "measure the mask-robust STN against known poses of the mean tibia",
    ),
    "evaluate confidence": (
        "TibiaCompletionLib.evaluation.confidence",
        "calibrate and measure the standard deviations of completed tibiae",
    ),
    "evaluate motions": (
        "TibiaCompletionLib.evaluation.motions",
        "measure what motions of their own save displaced pieces, on training people",
    ),
    "evaluate other-leg": (
        "TibiaCompletionLib.evaluation.otherleg",
        "measure what the other leg is worth, on virtual people",
    ),
    "evaluate fragments": (
        "TibiaCompletionLib.evaluation.fragments",
        "measure how near reduced fragments come to their true places",
    ),
    "evaluate finding": (
        "TibiaCompletionLib.evaluation.finding",
        "measure how well tibiae are found in CTs of real people's legs",
    ),
    "evaluate knee": (
        "BiplanarReconLib.evaluation.knee",
        "measure knees reconstructed from X-rays made of real people's bones",
    ),
    "evaluate geometry": (
        "BiplanarReconLib.evaluation.geometryerror",
        "measure what a wrong geometry of the X-rays does to reconstructed knees",
    ),
    "evaluate register-ct": (
        "BiplanarReconLib.evaluation.ctregistration",
        "measure CTs registered to X-rays that are made of them",
    ),
    "train prior": (
        "BoneReconstructionLib.priortraining",
        "learn the shape prior of tibia and fibula from bone meshes",
    ),
    "train knee-prior": (
        "BoneReconstructionLib.kneepriortraining",
        "learn the shape prior of the knee's four bones from bone meshes",
    ),
    "train tibia": (
        "TibiaCompletionLib.training",
        "train the registrations and autoencoders that complete tibiae",
    ),
    "models": (
        "BoneReconstructionLib.modelzoo",
        "list the models, or print one model's card",
    ),
}
_GROUPS = {"evaluate": "measure methods on data that none has seen", "train": "learn a model from data"}

_EXTRAS = {
    "numpy": "numpy",
    "scipy": "scipy",
    "vtk": "bonereconstruction[geometry]",
    "vtkmodules": "bonereconstruction[geometry]",
    "SimpleITK": "bonereconstruction[geometry]",
    "pydicom": "bonereconstruction[geometry]",
    "torch": "bonereconstruction[learn]",
    "monai": "bonereconstruction[learn]",
    "tensorboard": "bonereconstruction[learn]",
    "numba": "bonereconstruction[fast]",
}
_MODULES = {"TibiaCompletionLib": "TibiaCompletion", "BiplanarReconLib": "BiplanarRecon"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments after the program's name; those of this process when None.

    Returns:
        The exit status: 0, 2 for bad input, 3 for a missing package, 130 for Ctrl-C.

    Raises:
        SystemExit: after --help, --version and arguments that cannot be understood (status 2).
    """
    jobs.end_with_parent()
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = _parse(argv)
        arguments.run(arguments)
        sys.stdout.flush()
    except InputError as error:
        return _complain(str(error), jobs.INPUT_ERROR_STATUS)
    except ModuleNotFoundError as error:
        advice = _advice(error)
        if advice is None:
            raise
        return _complain(advice, jobs.MISSING_PACKAGE_STATUS)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone, as `head` does. Python would complain once more when it flushes at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    chosen = next((name for name in _COMMANDS if argv[: len(name.split())] == name.split()), None)
    parser = argparse.ArgumentParser(
        prog="bonerecon",
        description="Computer-assisted bone reconstruction. Not for clinical use.",
        epilog="`bonerecon COMMAND --help` explains a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bonerecon {VERSION}")
    levels = {(): parser.add_subparsers(metavar="COMMAND", required=True)}
    for name, (module, summary) in _COMMANDS.items():
        *group, word = name.split()
        if tuple(group) not in levels:
            description = _GROUPS[group[0]]
            branch = levels[()].add_parser(group[0], help=description, description=_sentence(description))
            levels[tuple(group)] = branch.add_subparsers(metavar="COMMAND", required=True)
        command = levels[tuple(group)].add_parser(
            word, help=summary, description=_sentence(summary), allow_abbrev=False
        )
        if name == chosen:
            target = importlib.import_module(module)
            target.add_arguments(command)
            command.set_defaults(run=target.run)
    return parser.parse_args(argv)


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def _advice(error: ModuleNotFoundError) -> str | None:
    """Says which package is missing and how to get it; None for a package that the project does not use."""
    package = (error.name or "").partition(".")[0]
    if package in _MODULES:
        return f"The package {package} is missing: add the folder {_MODULES[package]} to PYTHONPATH."
    if package not in _EXTRAS:
        return None
    slicer = "in 3D Slicer install the extension PyTorch, elsewhere " if package == "torch" else ""
    return f'The package {package} is missing: {slicer}run `pip install "{_EXTRAS[package]}"`.'


def _complain(sentence: str, status: int) -> int:
    print(f"{jobs.MESSAGE_PREFIX}{sentence}", file=sys.stderr, flush=True)
    return status

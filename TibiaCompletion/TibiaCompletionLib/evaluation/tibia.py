"""`bonerecon evaluate tibia`: every method on real tibiae of people it has never seen, case by case."""

import argparse
from pathlib import Path

from BoneReconstructionLib.evaluationruns import positive
from TibiaCompletionLib.evaluation.cases import CASES, case_keys
from TibiaCompletionLib.evaluation.runner import BASELINES, DEFAULT, evaluate, method_names, summary

DEFAULT_JOBS = 2


def add_arguments(parser):
    """Declare the arguments of `bonerecon evaluate tibia`."""
    parser.add_argument(
        "--bones",
        required=True,
        metavar="FOLDER",
        help="folder with tibia/<subject>_<L|R>.ply and, where there are, fibula, femur, talus and the other side",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="OUT.csv", help="one row for each completion")
    parser.add_argument(
        "--methods",
        type=_methods,
        default=(DEFAULT, *BASELINES),
        metavar="A,B",
        help=f"out of {', '.join(method_names())} (default: {', '.join((DEFAULT, *BASELINES))})",
    )
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE", help=f"of {', '.join(CASES)} (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="a few cases of the first leg, within a minute")
    parser.add_argument("--jobs", type=positive, default=DEFAULT_JOBS, metavar="N", help="parallel processes (default 2)")


def run(arguments):
    """Run `bonerecon evaluate tibia`."""
    keys = [key for key in case_keys(arguments.bones, arguments.quick) if key.case in arguments.cases]
    rows = evaluate(arguments.bones, arguments.output, arguments.methods, keys, arguments.jobs)
    print(summary(rows))


def _methods(text):
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in method_names():
            raise argparse.ArgumentTypeError(f"there is no method {name!r}; choose out of {', '.join(method_names())}")
    return names

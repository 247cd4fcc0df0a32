"""The command line's arguments that name a frontal and a lateral X-ray."""

from BoneReconstructionLib.radiographs import BONE, RELATIONS

VIEWS = ("ap", "lateral")


def add_xray_arguments(parser):
    """Declare the two X-rays, their geometries, how their values are to be read, and the output folder."""
    for name, what in zip(VIEWS, ("frontal (AP or PA)", "lateral"), strict=True):
        parser.add_argument(f"--{name}", required=True, metavar="FILE", help=f"{what} X-ray")
        parser.add_argument(
            f"--{name}-geometry",
            required=True,
            metavar="FILE",
            help=f"geometry of the {what} X-ray (.json as simulate-xrays writes it, or MayaCam 2.0 text)",
        )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--relation", choices=RELATIONS, help="of the X-rays' values to the beam (default: as stated)")
    parser.add_argument("--bone", choices=BONE, help="how bone looks in the X-rays (default: as stated)")

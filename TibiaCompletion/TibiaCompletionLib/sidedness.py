"""Which side a tibia is of: what is given, what its segment is called and what its shape says."""

import re

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import SIDES
from BoneReconstructionLib.threads import together
from TibiaCompletionLib.plausibility import check_tibia, likeness

# A bone of the other side fits the prior worse by this factor or more; below it the side is anybody's guess.
CLEAR_SIDE_RATIO = 1.25


def detect_side(case, side, accept_side=False):
    """Find the side of the tibia by its shape and compare it with the given one.

    Args:
        case: a `TibiaCase`.
        side: "left", "right" or "auto".
        accept_side: keep a given side that the shape contradicts.

    Returns:
        (side, `plausibility.Likeness` with a tibia of that side, warnings): warnings only where such a side is kept.

    Raises:
        InputError: the bone is no adult tibia; the shape clearly is of the other side than given; side "auto", and
            the visible bone fits both sides alike.
    """
    tried = dict(zip(SIDES, together(lambda name=name: likeness(case.visible(name)) for name in SIDES)))
    check_tibia(case, tried)
    better, worse = sorted(tried, key=lambda name: tried[name].distance_mm)
    clear = tried[worse].distance_mm > CLEAR_SIDE_RATIO * tried[better].distance_mm
    if side == "auto" and not clear:
        raise InputError("The side cannot be told from the visible bone: choose left or right.")
    warnings = []
    if side == "auto":
        side = better
    elif clear and side != better:
        if not accept_side:
            raise InputError(
                f"The shape is that of a {better} tibia although {side} was given: the image may be mirrored or the "
                "side wrong, so check both, or keep the given side with --accept-side."
            )
        warnings.append(f"The shape is that of a {better} tibia although {side} was given and accepted.")
    return side, tried[side], warnings


def named_side(name):
    """The side that SEGMENT in FILE:SEGMENT says, "left" or "right", or None: "leg.seg.nrrd:Left tibia" is left."""
    segment = name.rpartition(":")[2] if ":" in name else ""
    if re.search(r"[\\/]", segment):  # what follows a Windows drive's letter
        return None
    words = re.split(r"[\W_]+", segment.lower())
    said = [side for side in SIDES if side in words]
    return said[0] if len(said) == 1 else None

"""Sizes of the bones of a knee in correspondence with the knee prior's templates, and what has been published of them.

As in `tibiameasurements`, landmarks are sets of template vertices, found once on the mean bones. Ranges that were
published for men and women are pooled into one for adults of both sexes.
"""

import numpy as np

from BoneReconstructionLib.tibiameasurements import PUBLISHED as TIBIA
from BoneReconstructionLib.tibiameasurements import Published

_FEMUR = "Terzidis et al., Anat Res Int 2012:679658, 192 male and 168 female femora, pooled"
_PATELLA = (
    "Iranpour et al., The width:thickness ratio of the patella, Clin Orthop Relat Res 466:1198-1203, 2008, as quoted "
    "in Morphometric analysis of the Filipino knee, Arthroplasty 4:17, 2022, table 10"
)
PUBLISHED = {
    "femur_width": Published(83.9, 6.2, "mm", _FEMUR),
    "medial_condyle_depth": Published(58.7, 4.1, "mm", _FEMUR),
    "lateral_condyle_depth": Published(58.4, 4.0, "mm", _FEMUR),
    "plateau_width": TIBIA["plateau_width"],
    "plateau_depth": TIBIA["plateau_depth"],
    "patella_width": Published(44.8, 4.8, "mm", _PATELLA),
    "patella_thickness": Published(22.4, 2.3, "mm", _PATELLA),
}
# Lengths of usual whole bones; a patella is all end.
LENGTH_MM = {"femur": 430.0, "tibia": 365.0, "fibula": 360.0, "patella": np.inf}
HEAD_MM = 17.0
CONDYLES_MM = 45.0
# Half the width of the bands, parallel to the sagittal plane, that the depths of the condyles are measured in.
BAND_MM = 12.0


def height_along(bone, mean, points):
    """Share of the whole bone's length between the knee and points of the mean bone's space.

    Args:
        bone: its name.
        mean: (n, 3) vertices of the prior's mean bone in its standard frame.
        points: (m, 3) array or tensor in the same frame, mm.

    Returns:
        (m,) 0 at the joint.
    """
    low, high = float(mean[:, 2].min()), float(mean[:, 2].max())
    from_joint = high - points[:, 2] if bone in ("tibia", "fibula") else points[:, 2] - low
    return from_joint / LENGTH_MM[bone]


class KneeLandmarks:
    """Vertex sets of the templates that stand for anatomical places of a right knee.

    Args:
        means: {bone: (n, 3) vertices of the prior's mean bone in its standard frame}.
    """

    def __init__(self, means):
        femur, tibia = means["femur"], means["tibia"]
        self.condyles = np.flatnonzero(femur[:, 2] < femur[:, 2].min() + CONDYLES_MM)
        x = femur[self.condyles, 0]
        middle = (x.min() + x.max()) / 2

        def condyle(side):
            half = self.condyles[side * (x - middle) > 0]
            furthest = femur[half[np.argmin(femur[half, 1])], 0]
            return half[np.abs(femur[half, 0] - furthest) < BAND_MM]

        self.medial_condyle, self.lateral_condyle = condyle(-1), condyle(1)
        self.head = np.flatnonzero(tibia[:, 2] > tibia[:, 2].max() - HEAD_MM)

    def measure(self, bones):
        """Measure one knee.

        Args:
            bones: {bone: (n, 3) vertices in the standard frames, mm}.

        Returns:
            dict with the keys of `PUBLISHED`, in mm:

            - femur_width: mediolateral extent of the condyles with the epicondyles.
            - medial_condyle_depth, lateral_condyle_depth: anteroposterior extent of each condyle (Terzidis 2012).
            - plateau_width, plateau_depth: extent of the tibial head, as in `tibiameasurements`.
            - patella_width, patella_thickness: mediolateral and anteroposterior extent.
        """
        femur, tibia, patella = bones["femur"], bones["tibia"], bones["patella"]
        extents = {
            "femur_width": femur[self.condyles, 0],
            "medial_condyle_depth": femur[self.medial_condyle, 1],
            "lateral_condyle_depth": femur[self.lateral_condyle, 1],
            "plateau_width": tibia[self.head, 0],
            "plateau_depth": tibia[self.head, 1],
            "patella_width": patella[:, 0],
            "patella_thickness": patella[:, 1],
        }
        return {name: float(np.ptp(values)) for name, values in extents.items()}

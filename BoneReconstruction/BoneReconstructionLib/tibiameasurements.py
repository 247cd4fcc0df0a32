"""Sizes and angles of a tibia in correspondence with the prior's template, and what has been published of them.

Landmarks are sets of template vertices, found once on the mean bone, so that a measurement is a short formula of
vertices; it works on many bones at once.
"""

from dataclasses import dataclass

import numpy as np

from BoneReconstructionLib.surfaces import Surface, vertex_normals


@dataclass(frozen=True)
class Published:
    """A published human range.

    Attributes:
        mean, sd: of adults of both sexes, in `unit`.
        unit: "mm" or "degrees".
        source: the reference.
    """

    mean: float
    sd: float
    unit: str
    source: str


_ULM = "Strecker et al., J Bone Joint Surg Br 79-B(6):1019-1023, 1997 (given as mean +/- 2 SD)"
_PLATEAU = (
    "Correlation of Anthropometric Measurements of Proximal Tibia in Iranian Knees with Size of Current Tibial "
    "Implants, Arch Bone Jt Surg, MRI of 132 adult knees"
)
PUBLISHED = {
    "length": Published(369.0, 28.0, "mm", f"{_ULM}, 513 tibiae"),
    "plateau_width": Published(73.36, 6.86, "mm", _PLATEAU),
    "plateau_depth": Published(46.53, 4.05, "mm", _PLATEAU),
    "medial_slope": Published(6.9, 3.7, "degrees", "Weinberg et al., Am J Sports Med 45(1):106-113, 2017, 1090 tibiae"),
    "torsion": Published(34.9, 7.95, "degrees", f"{_ULM}, 504 tibiae"),
}


class TibiaLandmarks:
    """Vertex sets of the template that stand for anatomical places of a right tibia in the standard frame.

    Args:
        mean: (n, 3) vertices of the prior's mean tibia.
        faces: (m, 3).
    """

    def __init__(self, mean, faces):
        normals = vertex_normals(Surface(mean, faces))
        x, _, z = mean.T
        top, bottom = z.max(), z.min()
        self.head = np.flatnonzero(z > top - 17)
        head = mean[self.head]
        middle = (head.min(0) + head.max(0)) / 2
        width = np.ptp(head[:, 0])
        joint = (normals[:, 2] > 0.8) & (z > top - 16)

        def plateau(sign):
            centre = middle[:2] + [sign * 0.27 * width, 0]
            return np.flatnonzero(joint & (np.linalg.norm(mean[:, :2] - centre, axis=1) < 0.14 * width))

        def posterior(sign):
            half = self.head[(sign * (head[:, 0] - middle[0]) > 0.1 * width) & (head[:, 2] < top - 7)]
            return half[np.argsort(mean[half, 1])[:25]]

        self.medial_plateau, self.lateral_plateau = plateau(-1), plateau(1)
        self.medial_posterior, self.lateral_posterior = posterior(-1), posterior(1)
        self.plafond = np.flatnonzero((normals[:, 2] < -0.85) & (z < bottom + 25) & (z > bottom + 6))
        self.malleolus = np.flatnonzero(z < bottom + 8)
        # The fibular notch looks backwards and outwards, between the two tubercles above the plafond.
        outwards = np.array([np.cos(np.radians(40)), -np.sin(np.radians(40)), 0])
        self.notch = np.flatnonzero((z > bottom + 12) & (z < bottom + 24) & (normals @ outwards > 0.87) & (x > 0))

    def measure(self, tibia):
        """Measure one tibia.

        Args:
            tibia: (n, 3) vertices of a right tibia in correspondence with the template, any pose, mm.

        Returns:
            dict with the keys of `PUBLISHED`:

            - length: middle of the plateau to middle of the plafond, mm (Strecker 1997).
            - plateau_width: mediolateral extent of the head parallel to the posterior tangent, mm.
            - plateau_depth: anteroposterior extent of the head above the tuberosity, mm.
            - medial_slope: inclination of the medial plateau in the sagittal plane against the perpendicular of the
              long axis; positive: the back is lower, degrees (Weinberg 2017).
            - torsion: from the posterior tangent of the plateau to the line from the medial malleolus to the fibular
              notch, seen along the long axis; positive: the foot turns outwards, degrees (Strecker 1997).
        """
        medial, lateral = tibia[self.medial_plateau].mean(0), tibia[self.lateral_plateau].mean(0)
        plafond = tibia[self.plafond].mean(0)
        z = (medial + lateral) / 2 - plafond
        length = np.linalg.norm(z)
        z = z / length
        tangent = tibia[self.lateral_posterior].mean(0) - tibia[self.medial_posterior].mean(0)
        x = tangent - (tangent @ z) * z
        x /= np.linalg.norm(x)
        y = np.cross(z, x)
        head = tibia[self.head]
        points = tibia[self.medial_plateau] - medial
        slope = np.linalg.lstsq(np.stack([points @ x, points @ y], 1), points @ z, rcond=None)[0][1]
        ankle = tibia[self.notch].mean(0) - tibia[self.malleolus].mean(0)
        return {
            "length": float(length),
            "plateau_width": float(np.ptp(head @ x)),
            "plateau_depth": float(np.ptp(head @ y)),
            "medial_slope": float(np.degrees(np.arctan(slope))),
            "torsion": float(np.degrees(np.arctan2(-(ankle @ y), ankle @ x))),
        }

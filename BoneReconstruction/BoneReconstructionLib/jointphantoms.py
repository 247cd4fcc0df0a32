"""Smooth stand-ins for the femur's condyles and the talus: what a CT shows beyond the tibia's joints.

They are given in the space of the mean tibia (standard frame, right, mm), so that the warp that makes a person of it
carries them along, and as bodies that reach a little into the tibia: the renderer takes away what lies closer to the
tibia than the joint gap, which shapes the joint surface as the tibia's counterpart.
"""

import math

import torch

from BoneReconstructionLib.tibiameasurements import TibiaLandmarks

# How deep the bodies reach into tibia or fibula, mm: the further, the wider the surface that follows theirs.
CONDYLE_SINKS_MM = 3.0
TALUS_SINKS_MM = 3.0
BLEND_MM = 6.0
# Height that counts as 1 for the femur: its shaft's cortex is full from a quarter of it.
FEMUR_LENGTH_MM = 400.0


class JointPhantoms:
    """The femur's distal end and the talus beside a mean tibia.

    Args:
        mean: (n, 3) vertices of the prior's mean tibia.
        faces: (m, 3).
    """

    def __init__(self, mean, faces):
        places = TibiaLandmarks(mean, faces)
        self._medial, self._lateral, self._plafond = (
            mean[chosen].mean(0) for chosen in (places.medial_plateau, places.lateral_plateau, places.plafond)
        )

    def femur(self, points, size, flexion_degrees):
        """Approximate signed distance to the femur's distal part and shaft.

        Args:
            points: (n, 3) tensor, mean tibia's space, mm.
            size: relative to a usual femur.
            flexion_degrees: of the knee.

        Returns:
            (distance (n,) in mm, positive outside, height (n,) along the bone from 0, distal).
        """
        middle = torch.as_tensor((self._medial + self._lateral) / 2, dtype=points.dtype, device=points.device)
        spread = float(self._lateral[0] - self._medial[0]) / 2
        angle = math.radians(flexion_degrees)
        x, y, z = ((points - middle) / size).T
        above = 22.0
        y, z = (
            math.cos(angle) * y + math.sin(angle) * (z - above),
            math.cos(angle) * (z - above) - math.sin(angle) * y + above,
        )
        # The condyles, what joins them above the notch, and the shaft.
        radii = (13.0, 31.0, above + CONDYLE_SINKS_MM)
        medial = _ellipsoid(x + spread, y + 1.0, z - above, radii)
        lateral = _ellipsoid(x - spread, y + 1.0, z - above, radii)
        bridge = _ellipsoid(x, y - 4.0, z - 39.0, (36.0, 22.0, 23.0))
        width = 13.0 + 9.0 * torch.exp(-torch.clamp(z - 40.0, 0) / 30.0)
        shaft = torch.maximum(torch.hypot(x / 1.3, y - 4.0) - width, 40.0 - z)
        body = _union(_union(medial, lateral, 3.0), _union(bridge, shaft, BLEND_MM), BLEND_MM)
        return body * size, z / FEMUR_LENGTH_MM

    def talus(self, points, size):
        """Approximate signed distance (n,) to the talus at (n, 3) points of the mean tibia's space, mm."""
        middle = torch.as_tensor(self._plafond, dtype=points.dtype, device=points.device)
        x, y, z = ((points - middle) / size).T
        z = z - TALUS_SINKS_MM
        trochlea = _ellipsoid(x, y + 1.0, z + 19.0, (16.5, 22.0, 19.0))
        base = _ellipsoid(x - 3.0, y + 4.0, z + 27.0, (15.0, 22.0, 13.0))
        head = _ellipsoid(x + 4.0, y - 21.0, z + 24.0, (13.0, 14.0, 12.0))
        return _union(_union(trochlea, base, BLEND_MM), head, BLEND_MM) * size


def _ellipsoid(x, y, z, radii):
    """First-order distance to an ellipsoid about the origin."""
    a, b, c = x / radii[0], y / radii[1], z / radii[2]
    level = torch.sqrt(a * a + b * b + c * c + 1e-12)
    slope = torch.sqrt((a / radii[0]) ** 2 + (b / radii[1]) ** 2 + (c / radii[2]) ** 2 + 1e-12)
    return level * (level - 1) / slope


def _union(first, second, blend):
    """The smaller of two distances, rounded over `blend` mm where both are close."""
    overlap = torch.clamp(blend - (first - second).abs(), 0)
    return torch.minimum(first, second) - overlap * overlap / (4 * blend)

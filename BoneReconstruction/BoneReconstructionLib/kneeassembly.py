"""Where the bones of a knee lie to each other: joint gaps, flexion about the posterior condyles, patellar tracking.

Femur and tibia: the knee flexes about the line through the centres of the posterior condyles while the femur turns
outwards about the medial one, by 20 degrees up to 120 degrees of flexion (Johal et al., J Biomech 38(2):269-276, 2005:
the lateral condyle moves backwards, the medial one hardly). Height and tilt of the femur follow from the two gaps
between the bones, which cartilage fills.

Patella: it turns with the femur but lags behind the flexion, its tendon has a length, and it stands a gap away from
the femur, as far on the medial side of its ridge as on the lateral one.

Everything is right-sided; the knee's frame is the tibia's standard frame (see `kneepriortraining`).
"""

from dataclasses import dataclass

import numpy as np

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.frames import rotation_about, transform_points
from BoneReconstructionLib.surfaces import Surface, vertex_normals

OUTWARD_TURN_PER_FLEXION = 20.0 / 120.0
GAP_TOLERANCE_MM = 0.05
STEPS = 40
# Femoral vertices up to here above the flexion axis can touch the tibia or the patella, mm; patellar ones lie behind.
NEAR_TIBIA_MM, NEAR_PATELLA_MM = 12.0, 60.0
TUBEROSITY_MM = (30.0, 60.0)
APEX_VERTICES = 8
# Height above the flexion axis at which the quadriceps lies on the femur.
QUADRICEPS_MM = 95.0
LARGEST_STEP_MM, LARGEST_TILT = 4.0, 0.05
# How fast the patella gives way sideways to an uneven gap, and how far.
SIDEWAYS_RATE, SIDEWAYS_MM = 0.4, 4.0


@dataclass(frozen=True)
class KneePose:
    """How the bones of one knee lie.

    Attributes:
        flexion_degrees: of the knee; 0: straight.
        turn_degrees: of the femur, outwards, beyond what goes with flexion.
        medial_gap_mm, lateral_gap_mm: between femur and tibia where they are closest.
        forward_mm, sideways_mm: of the femur, from the medial condyle's centre above the middle of the medial plateau,
            and from the condyles midway between the plateaus; forward to the front, sideways lateral.
        fibula_gap_mm: between tibia and fibula where they are closest.
        patella_gap_mm: between femur and patella where they are closest, on either side of the patella's ridge.
        tendon_ratio: length of the patellar tendon relative to that of the patella.
        patella_lag: share of the knee's flexion that the patella flexes on the femur.
        patella_tilt_degrees: of the patella about its long axis, lateral edge to the front.
    """

    flexion_degrees: float = 0.0
    turn_degrees: float = 0.0
    medial_gap_mm: float = 5.0
    lateral_gap_mm: float = 5.5
    forward_mm: float = 0.0
    sideways_mm: float = 0.0
    fibula_gap_mm: float = 1.5
    patella_gap_mm: float = 5.0
    tendon_ratio: float = 1.02
    patella_lag: float = 0.65
    patella_tilt_degrees: float = 0.0


class KneeAssembly:
    """Assembles the bones of people in correspondence with the knee prior.

    Args:
        priors: {bone: `ShapePrior`} of the knee prior.
    """

    def __init__(self, priors):
        self._faces = {bone: prior.faces for bone, prior in priors.items()}
        femur, tibia, patella = (priors[bone].mean for bone in ("femur", "tibia", "patella"))
        near = femur[:, 2] < NEAR_TIBIA_MM
        self._medial_femur, self._lateral_femur = (np.flatnonzero(near & side) for side in _halves(femur))
        facets = [half & (np.abs(femur[:, 1]) < 30) for half in _halves(femur)]
        self._condyles = [half & near for half in facets]
        # The femur's locator is asked for the patella, which never comes near the shaft.
        self._trochlea = (femur[:, 2] < NEAR_PATELLA_MM)[priors["femur"].faces].all(1)
        ring = np.flatnonzero(np.abs(femur[:, 2] - QUADRICEPS_MM) < 5)
        self._thigh = ring[np.argsort(femur[ring, 1])[-APEX_VERTICES:]]
        top = tibia[:, 2].max()
        head = tibia[tibia[:, 2] > top - 17]
        middle, width = (head.min(0) + head.max(0)) / 2, np.ptp(head[:, 0])
        flat = (vertex_normals(Surface(tibia, priors["tibia"].faces))[:, 2] > 0.8) & (tibia[:, 2] > top - 16)
        self._medial_plateau, self._lateral_plateau = (
            np.flatnonzero(
                flat & (np.linalg.norm(tibia[:, :2] - middle[:2] - [side * 0.27 * width, 0], axis=1) < 0.14 * width)
            )
            for side in (-1, 1)
        )
        low, high = TUBEROSITY_MM
        front = np.flatnonzero((tibia[:, 2] < top - low) & (tibia[:, 2] > top - high))
        self._tuberosity = front[np.argsort(tibia[front, 1])[-APEX_VERTICES:]]
        self._apex = np.argsort(patella[:, 2])[:APEX_VERTICES]
        rear = patella[:, 1] < np.percentile(patella[:, 1], 50)
        ridge = patella[np.argmin(patella[:, 1]), 0]
        self._medial_facet = np.flatnonzero(rear & (patella[:, 0] < ridge))
        self._lateral_facet = np.flatnonzero(rear & (patella[:, 0] >= ridge))

    def assemble(self, bones, pose):
        """Place the bones of one person.

        Args:
            bones: {bone: (n, 3) vertices of a right bone in its standard frame at the person's size, mm}.
            pose: a `KneePose`.

        Returns:
            {bone: (4, 4) rigid knee_from_bone}.

        Raises:
            ArithmeticError: the gaps cannot be met.
        """
        femur = self._femur(bones, pose)
        fibula, patella = self._fibula(bones, pose), self._patella(bones, pose, femur)
        return {"femur": femur, "tibia": np.eye(4), "fibula": fibula, "patella": patella}

    def extensor(self, bones, poses):
        """(3, 3) course of the extensor mechanism, mm: tuberosity, middle of the patella, thigh above the patella."""
        femur, patella = (transform_points(poses[bone], bones[bone]) for bone in ("femur", "patella"))
        return np.array([bones["tibia"][self._tuberosity].mean(0), patella.mean(0), femur[self._thigh].mean(0)])

    def gaps(self, bones, poses):
        """Smallest distances between the bones as they lie, mm: of "medial", "lateral", "fibula", "patella"; negative: they meet."""
        tibia = SurfaceLocator(Surface(bones["tibia"], self._faces["tibia"]))
        to_tibia = tibia.signed(transform_points(poses["femur"], bones["femur"]))
        femur = SurfaceLocator(Surface(bones["femur"], self._faces["femur"]))
        patella = transform_points(np.linalg.inv(poses["femur"]) @ poses["patella"], bones["patella"])
        return {
            "medial": float(to_tibia[self._medial_femur].min()),
            "lateral": float(to_tibia[self._lateral_femur].min()),
            "fibula": float(tibia.signed(transform_points(poses["fibula"], bones["fibula"])).min()),
            "patella": float(femur.signed(patella).min()),
        }

    def _femur(self, bones, pose):
        femur, tibia = bones["femur"], bones["tibia"]
        locator = SurfaceLocator(Surface(tibia, self._faces["tibia"]))
        medial, lateral = (femur[half].mean(0) * [1, 0, 0] for half in self._condyles)
        spread = lateral[0] - medial[0]
        plateaus = [tibia[part].mean(0) for part in (self._medial_plateau, self._lateral_plateau)]
        turn = np.radians(pose.turn_degrees + OUTWARD_TURN_PER_FLEXION * pose.flexion_degrees)
        flexed = rotation_about((1, 0, 0), np.radians(pose.flexion_degrees))
        height, tilt = 28.0, 0.0
        wanted = np.array([pose.medial_gap_mm, pose.lateral_gap_mm])
        for _ in range(STEPS):
            matrix = np.eye(4)
            matrix[:3, :3] = rotation_about((0, 0, 1), -turn) @ rotation_about((0, 1, 0), tilt) @ flexed
            at_medial, at_lateral = matrix[:3, :3] @ medial, matrix[:3, :3] @ lateral
            middle = (plateaus[0] + plateaus[1]) / 2
            matrix[:3, 3] = [
                middle[0] + pose.sideways_mm - (at_medial[0] + at_lateral[0]) / 2,
                plateaus[0][1] + pose.forward_mm - at_medial[1],
                height,
            ]
            found = [
                locator.signed(transform_points(matrix, femur[half])).min()
                for half in (self._medial_femur, self._lateral_femur)
            ]
            error = wanted - found
            if np.abs(error).max() < GAP_TOLERANCE_MM:
                return matrix
            height += np.clip(error.mean(), -LARGEST_STEP_MM, LARGEST_STEP_MM)
            tilt -= np.clip((error[1] - error[0]) / spread, -LARGEST_TILT, LARGEST_TILT)
        raise ArithmeticError(f"Femur and tibia do not come {wanted} mm close to each other.")

    def _fibula(self, bones, pose):
        """Moved away from the tibia, or towards it, across the leg: the prior knows how it stands beside the tibia."""
        surface = Surface(bones["tibia"], self._faces["tibia"])
        locator, matrix = SurfaceLocator(surface), np.eye(4)
        for _ in range(STEPS):
            points = transform_points(matrix, bones["fibula"])
            distances = locator.signed(points)
            nearest = int(np.argmin(distances))
            error = pose.fibula_gap_mm - distances[nearest]
            if abs(error) < GAP_TOLERANCE_MM:
                return matrix
            _, _, face = locator.closest(points[[nearest]])
            a, b, c = surface.vertices[surface.faces[face[0]]]
            outward = np.cross(b - a, c - a) * [1, 1, 0]
            matrix[:3, 3] += np.clip(error, -LARGEST_STEP_MM, LARGEST_STEP_MM) * outward / np.linalg.norm(outward)
        raise ArithmeticError(f"Tibia and fibula do not come {pose.fibula_gap_mm} mm close to each other.")

    def _patella(self, bones, pose, femur_matrix):
        patella, tuberosity = bones["patella"], bones["tibia"][self._tuberosity].mean(0)
        apex, length = patella[self._apex].mean(0), np.ptp(patella[:, 2])
        tendon = pose.tendon_ratio * length
        locator = SurfaceLocator(Surface(bones["femur"], self._faces["femur"][self._trochlea]))
        to_femur = np.linalg.inv(femur_matrix)
        back = rotation_about((1, 0, 0), -np.radians(pose.patella_lag * pose.flexion_degrees))
        tilted = rotation_about((0, 0, 1), np.radians(pose.patella_tilt_degrees))
        matrix = np.eye(4)
        matrix[:3, :3] = femur_matrix[:3, :3] @ back @ tilted
        groove = femur_matrix[0, 3]
        lean, x = 0.5, groove + (apex @ [1, 0, 0] - patella[:, 0].mean())
        start = x
        for step in range(STEPS):
            tip = [x, tuberosity[1] + tendon * np.sin(lean), tuberosity[2] + tendon * np.cos(lean)]
            matrix[:3, 3] = tip - matrix[:3, :3] @ apex
            medial, lateral = (
                locator.signed(transform_points(to_femur @ matrix, patella[facet])).min()
                for facet in (self._medial_facet, self._lateral_facet)
            )
            error = pose.patella_gap_mm - min(medial, lateral)
            # Above the groove nothing holds the patella: it settles within the first half of the steps.
            moved = np.clip(SIDEWAYS_RATE * (lateral - medial), -1, 1) if step < STEPS // 2 else 0.0
            if abs(error) < GAP_TOLERANCE_MM and (abs(moved) < 0.1 or abs(x - start) >= SIDEWAYS_MM):
                return matrix
            x = np.clip(x + moved, start - SIDEWAYS_MM, start + SIDEWAYS_MM)
            lean += np.clip(error, -LARGEST_STEP_MM, LARGEST_STEP_MM) / tendon
        raise ArithmeticError(f"Femur and patella do not come {pose.patella_gap_mm} mm close to each other.")


def _halves(vertices):
    """The medial and the lateral half of a femur whose origin lies midway between the condyles: (n,) bool each."""
    return vertices[:, 0] < 0, vertices[:, 0] >= 0

"""The other leg of a virtual person: like the person's own, but not equal."""

from dataclasses import replace

import numpy as np

from BoneReconstructionLib.surfaces import Surface

# By how much two legs of a person differ: standard deviations of the prior's weights, and of the size.
WEIGHTS_SD, LOG_SCALE_SD = 0.25, 0.004
# What the weights leave open of the torsion. Healthy tibiae differ by 4 degrees on average between the sides (Pfeifer
# et al., In Vivo 9(3):257-261, 1995), 5.3 in a more diverse population (J Orthop Trauma 35(9), 2021), measurement
# errors of some 2.5 degrees on either side included.
TORSION_SD_DEGREES = 3.5


def other_tibia(patients, person):
    """The tibia of a virtual person's other leg, mirrored to a right one.

    Args:
        patients: `VirtualPatients`.
        person: its `VirtualPerson`; the seed decides how the legs differ.

    Returns:
        Surface in the standard frame, mm, in correspondence with the person's own.
    """
    generator = np.random.default_rng([person.seed, 2])

    def like(weights):
        return weights + WEIGHTS_SD * generator.standard_normal(weights.shape)

    other = replace(
        person,
        scale=person.scale * float(np.exp(LOG_SCALE_SD * generator.standard_normal())),
        mode_weights=like(person.mode_weights),
        kernel_weights={bone: like(weights) for bone, weights in person.kernel_weights.items()},
    )
    vertices = patients.vertices(other, "tibia")
    twist = np.radians(TORSION_SD_DEGREES) * generator.standard_normal()
    return Surface(twisted(vertices, twist), patients.priors["tibia"].faces)


def twisted(vertices, angle):
    """(n, 3) points turned about the z axis, evenly along it, by an angle in radians between the lowest and highest."""
    height = vertices[:, 2]
    turn = angle * ((height - height.min()) / np.ptp(height) - 0.5)
    x, y = vertices[:, 0], vertices[:, 1]
    return np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn), height], 1)

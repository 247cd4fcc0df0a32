"""What the networks learn from: images of one tibia each, of virtual people made on the training device or real CTs.

An image is the paper's x * m: the CT within the fixed HU window, mapped to [0, 1], and zero outside the tibia. Raw
images lie as they were scanned, a left leg mirrored, with the middle of the bone's bounding box in the grid's middle.
"""

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional

from BoneReconstructionLib.frames import similarity_from_points
from BoneReconstructionLib.imagemetrics import HU_WINDOW
from BoneReconstructionLib.virtualpatients import VirtualPatients, VirtualPerson
from TibiaCompletionLib.standardgrid import CENTRE_MM, STANDARD_GRID

# Seeds of virtual people: training counts up from the first, left-out people from the second.
FIRST_TRAINING_SEED, FIRST_LEFT_OUT_SEED = 1_000_000, 9_000_000
# Where an image's value crosses this, the bone's surface is. Cancellous bone under a thin cortex, half of which the
# outermost voxel shows, is still brighter; on the standard grid the surface comes out 0.2 mm too far outside.
SURFACE_LEVEL = 0.1
# Legs lie in the scanner within this of its axes.
POSE_DEGREES = 15.0
POSE_SHARES = 11


def bone_image(hu, mask):
    """Bone alone in [0, 1]: windowed HU, zero outside the mask.

    Args:
        hu: tensor of any shape.
        mask: bool tensor of the same shape.
    """
    low, high = HU_WINDOW
    return ((hu - low) / (high - low)).clamp(0, 1) * mask


def scanner_pose(seed, vertices):
    """(3, 3) random rotation in which a virtual person lies in the scanner, as much of it as the grid has room for.

    Args:
        seed: of the person.
        vertices: (n, 3) of the person's bone in the standard frame, mm.
    """
    angles = np.random.default_rng([seed, 1]).uniform(-POSE_DEGREES, POSE_DEGREES, 3)
    room = 2 * STANDARD_GRID.half_extent_ijk
    for share in np.linspace(1.0, 0.0, POSE_SHARES):
        rotation = Rotation.from_euler("xyz", share * angles, degrees=True).as_matrix()
        if (np.ptp(vertices @ rotation.T, axis=0) <= room).all():
            break
    return rotation


def raw_from_standard(vertices, rotation):
    """(4, 4) rigid motion from the standard frame to that of raw images.

    Args:
        vertices: (n, 3) of the bone in the standard frame, mm.
        rotation: (3, 3).
    """
    turned = vertices @ rotation.T
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = CENTRE_MM - (turned.min(0) + turned.max(0)) / 2
    return matrix


def in_scanner(seed, vertices, mean):
    """(4, 4) from the frame of raw images to the standard frame: the person as it lies in the scanner.

    Args:
        seed: of the person.
        vertices: (n, 3) of the person's bone in the standard frame, mm.
        mean: (n, 3) of the mean bone; raw images know nothing of it.
    """
    return np.linalg.inv(raw_from_standard(vertices, scanner_pose(seed, vertices)))


def on_mean(seed, vertices, mean):
    """(4, 4) from the mean bone's frame to the person's, by corresponding vertices: an alignment that is known.

    Args:
        seed: of the person; the alignment does not depend on it.
        vertices: (n, 3) of the person's bone in the standard frame, mm.
        mean: (n, 3) of the mean bone.
    """
    return similarity_from_points(mean, vertices)


def mean_person(patients):
    """The `VirtualPerson` with the mean bone, everything else in the middle of what varies.

    Args:
        patients: `VirtualPatients`.
    """
    prior = patients.priors["tibia"]
    kernels = {bone: np.zeros((other.vertex_basis.shape[1], 3)) for bone, other in patients.priors.items()}
    tissue = {name: sum(limits) / 2 for name, limits in vars(patients.ranges).items()}
    return VirtualPerson(0, 1.0, np.zeros(len(prior.modes)), kernels, tissue)


class PersonImages:
    """Makes images of virtual people's right tibiae.

    They are rendered on the standard grid and averaged over coarser voxels, as a patient's CT is.

    Args:
        grid: `StandardGrid` of the images.
        device: torch device on which they are made.
        place: `in_scanner` or `on_mean`.
    """

    def __init__(self, grid, device, place=in_scanner):
        self.patients, self.grid, self.place = VirtualPatients(device=device), grid, place

    def __call__(self, seed):
        """(1, K, J, I) float16 tensor on the device, of the person of a seed; None: of `mean_person`."""
        person = mean_person(self.patients) if seed is None else self.patients.person(seed)
        vertices = self.patients.vertices(person, "tibia")
        place = self.place(seed, vertices, self.patients.priors["tibia"].mean)
        hu, labels = self.patients.ct(person, STANDARD_GRID.shape_kji, place @ STANDARD_GRID.ijk_to_standard)
        return on_grid(bone_image(hu, labels["tibia"])[None], self.grid).half()


def on_grid(images, grid):
    """Images (..., K, J, I) of the standard grid averaged over the voxels of a coarser one of the same box."""
    factors = [count // other for count, other in zip(STANDARD_GRID.shape_kji, grid.shape_kji, strict=True)]
    return functional.avg_pool3d(images, factors)


def virtual_images(seeds, grid, device, report=lambda fraction: None):
    """Raw images of virtual people's right tibiae.

    Args:
        seeds: of the people.
        grid: `StandardGrid`.
        device: torch device on which they are made.
        report: called with the fraction done.

    Returns:
        (N, 1, K, J, I) float16 tensor on the device.
    """
    image_of, images = PersonImages(grid, device), []
    for number, seed in enumerate(seeds):
        images.append(image_of(seed))
        report((number + 1) / len(seeds))
    return torch.stack(images)


def training_seeds(count):
    """Seeds of `count` people to learn from."""
    return range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + count)


def left_out_seeds(count):
    """Seeds of `count` people that no training sees."""
    return range(FIRST_LEFT_OUT_SEED, FIRST_LEFT_OUT_SEED + count)

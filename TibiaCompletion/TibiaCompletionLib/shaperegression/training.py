"""Training pairs and loss of the shape regressor: unlimited virtual people, masked at random, with known vertices."""

import numpy as np
import torch
from torch.nn import functional

from BoneReconstructionLib.frames import similarity_from_points, transform_points
from TibiaCompletionLib.randommasks import PILON_MM, PLATEAU_MM, random_masks
from TibiaCompletionLib.registration.network import affine_matrix, averaged, random_similarities, sample
from TibiaCompletionLib.standardgrid import STANDARD_GRID

FIRST_SEED = 20_000_000
# Rendering a person costs as much as several steps.
STEPS_A_PERSON = 4
# A classical start is right within this share of the paper's ranges: 7.5 degrees, 12.5 mm, 5 %.
START_ERROR = 0.5
# A coarse mask covers the broken bone and this much around it.
MASK_MARGIN_MM = 10.0
UNMASKED_SHARE, PARTIAL_SHARE, CONTEXT_SHARE = 0.15, 0.25, 0.5
SHORTEST_SCAN_MM = 110.0
# Distances below this count as their squares, mm.
SQUARED_BELOW_MM = 0.5
WEIGHT_PENALTY = 2e-3


class PeoplePool:
    """Masks and vertices of virtual people, of whom one is replaced every few steps.

    What the pool holds in a step follows from the step alone, so that a resumed training sees the same people. Their
    masks are drawn on the standard grid and averaged over the voxels that the regressor sees, as a patient's are.

    Args:
        patients: `VirtualPatients`.
        grid: `StandardGrid` that the regressor sees.
        size: number of people at a time.
        vertices: `network.PriorVertices`.
        first_seed: of the people.
    """

    def __init__(self, patients, grid, size, vertices, first_seed=FIRST_SEED):
        self.patients, self.coarse, self.vertices, self.first_seed = patients, grid, vertices, first_seed
        self.generation = np.full(size, -1)
        shape, self.grid = averaged(torch.empty((1, 1, *STANDARD_GRID.shape_kji), device="meta"), STANDARD_GRID, grid)
        shape = (size, 2, *shape.shape[2:])
        self.masks = torch.zeros(shape, dtype=torch.float16, device=patients.device)
        self.places = torch.zeros((size, len(vertices.index), 3), device=patients.device)

    def at(self, step, chosen):
        """What the pool holds of chosen people in a step; they are rendered when they are first asked for.

        Args:
            step: of the training.
            chosen: (N,) which of the people.

        Returns:
            (masks (N, 2, K, J, I) from 0 to 1: tibia and neighbouring bones, on the grid `self.grid`, see
            `registration.network.averaged`; places (N, V, 3) of the tibia's vertices, mm), in the frame in which the
            mean bone fits each best.
        """
        size = len(self.generation)
        for slot in sorted(set(chosen.tolist())):
            wanted = (step // STEPS_A_PERSON + size - 1 - slot) // size
            if wanted != self.generation[slot]:
                self._fill(slot, self.first_seed + slot + size * wanted)
                self.generation[slot] = wanted
        return self.masks[chosen], self.places[chosen]

    def _fill(self, slot, seed):
        person = self.patients.person(seed)
        vertices = self.patients.vertices(person, "tibia")
        place = similarity_from_points(self.patients.priors["tibia"].mean, vertices)
        _, labels = self.patients.ct(person, STANDARD_GRID.shape_kji, place @ STANDARD_GRID.ijk_to_standard)
        neighbours = torch.stack([mask for bone, mask in labels.items() if bone != "tibia"]).any(0)
        drawn = torch.stack([labels["tibia"], neighbours]).float()[None]
        self.masks[slot] = averaged(drawn, STANDARD_GRID, self.coarse)[0][0].half()
        places = transform_points(np.linalg.inv(place), vertices[self.vertices.index])
        self.places[slot] = torch.as_tensor(places, dtype=torch.float32)


def random_input(masks, places, pool_grid, grid, generator):
    """What a case shows of people: moved by the error of a start, masked, cut off, with or without neighbours.

    Args:
        masks: (N, 2, K, J, I) tensor from the pool.
        places: (N, V, 3) tensor, mm.
        pool_grid: `StandardGrid` of these masks.
        grid: that of the result.
        generator: torch.Generator on their device.

    Returns:
        (masks (N, 3, K, J, I) as `ShapeRegressor` is given them, places (N, V, 3) that it is to find,
        hidden (N, V) bool: the vertices that it is not shown).
    """
    count, device = len(masks), masks.device
    matrix = affine_matrix(random_similarities(count, generator, START_ERROR))
    moved = sample(masks.float(), matrix, pool_grid, grid)
    inverse = torch.linalg.inv(matrix)
    places = places @ inverse[:, :3, :3].transpose(1, 2) + inverse[:, None, :3, 3]

    def lot(share):
        return (torch.rand(count, generator=generator, device=device) < share).view(-1, 1, 1, 1, 1)

    near = _spread(moved[:, :1], [round(MASK_MARGIN_MM / spacing) for spacing in grid.spacing_ijk[::-1]]) > 0.5
    hidden = random_masks(grid, count, generator) & near & ~lot(UNMASKED_SHARE)
    unseen = _beyond_scan(grid, count, generator) & lot(PARTIAL_SHARE)
    tibia = moved[:, :1] * ~(hidden | unseen)
    neighbours = moved[:, 1:] * ~unseen * lot(CONTEXT_SHARE)
    hidden = (hidden | unseen).float()
    at = (places - places.new_tensor(grid.ijk_to_standard[:3, 3])) / places.new_tensor(grid.half_extent_ijk * 2)
    flags = functional.grid_sample(hidden, (2 * at - 1)[:, None, None], mode="nearest", align_corners=True)
    return torch.cat([tibia, neighbours, hidden], 1), places, flags[:, 0, 0, 0] > 0.5


def _spread(masks, reach_kji):
    """Largest value within a box of so many voxels to each side, axis by axis."""
    for axis, reach in enumerate(reach_kji):
        side = [1, 1, 1]
        side[axis] += 2 * reach
        masks = functional.max_pool3d(masks, side, 1, [count // 2 for count in side])
    return masks


def _beyond_scan(grid, count, generator):
    """(count, 1, K, 1, 1) bool: heights that a partial scan of the knee or the ankle leaves out."""
    first, step = grid.ijk_to_standard[2, 3], grid.spacing_ijk[2]
    heights = first + step * torch.arange(grid.shape_kji[0], device=generator.device)
    drawn = torch.rand((count, 2), generator=generator, device=generator.device)
    shown = SHORTEST_SCAN_MM + (PLATEAU_MM - PILON_MM - SHORTEST_SCAN_MM) * drawn[:, :1]
    proximal, distal = heights < PLATEAU_MM - shown, heights > PILON_MM + shown
    return torch.where(drawn[:, 1:] < 0.5, proximal, distal)[:, None, :, None, None]


def shape_loss(regressor, vertices, masks, places, hidden):
    """Mean distance of the vertices, hidden ones counted once more, and a little of the weights' squares.

    Args:
        regressor: `ShapeRegressor`.
        vertices: `PriorVertices`.
        masks, places, hidden: from `random_input`.

    Returns:
        (loss, {name: value to log}).
    """
    matrix, modes, kernels = regressor(masks)
    apart = torch.linalg.norm(vertices(matrix, modes, kernels) - places, dim=2)
    cost = functional.huber_loss(apart, torch.zeros_like(apart), reduction="none", delta=SQUARED_BELOW_MM)
    cost = cost / SQUARED_BELOW_MM
    gap = (cost * hidden).sum() / hidden.sum().clamp(min=1)
    penalty = (modes**2).mean() + (kernels**2).mean()
    found = {"distance_mm": apart.detach().mean(), "hidden_mm": (apart * hidden).sum().detach() / hidden.sum().clamp(1)}
    return cost.mean() + gap + WEIGHT_PENALTY * penalty, found

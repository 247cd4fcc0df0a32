"""Completion by registration alone: the prototype laid on the visible bone by the paper's ways or the refined one.

The mask-robust STN also brings bones to where the autoencoders expect them.
"""

import numpy as np
import torch
from torch.nn import functional

from BoneReconstructionLib.distances import closest_points
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import side_to_right
from BoneReconstructionLib.imagemetrics import windowed
from BoneReconstructionLib.shapeprior import TIBIA_PRIOR, load_prior
from BoneReconstructionLib.surfaces import Surface, largest_component, transformed
from BoneReconstructionLib.volumes import Volume, resample
from TibiaCompletionLib.networkmodels import find_network, grid_of, load_network
from TibiaCompletionLib.registration import refinement
from TibiaCompletionLib.registration.network import affine_matrix, averaged, sample
from TibiaCompletionLib.registration.training import register_directly
from TibiaCompletionLib.shapecompletion import Completion
from TibiaCompletionLib.standardgrid import STANDARD_GRID
from TibiaCompletionLib.trainingdata import SURFACE_LEVEL, on_grid

DIRECT_ID, STN_ID, MASKED_ID, REFINED_ID = "tibia-direct", "tibia-stn", "tibia-stn-masked", "tibia-stn-refined"
# The refined LocNet is asked again: what is nearly aligned already is registered more precisely.
TIMES = 3
# Registration without a network, see `register_directly`.
DIRECT_STEPS, DIRECT_RATE = 150, 0.01


def complete_by_refined_stn(case, side, matrix, report):
    """Lay the prior's mean bone on the visible bone by the refined LocNet, then on its visible voxels.

    Args:
        case: a `TibiaCase`.
        side: "left" or "right".
        matrix: (4, 4) starting similarity.
        report: called with the fraction done.

    Returns:
        Completion.

    Raises:
        InputError: a model is not there, or it was trained with another prior.
    """
    model = find_network(REFINED_ID)
    prototype = refined_prototype(model)
    report(0.1)
    found = found_by_locnet(model, case, side, matrix)
    report(0.5)
    found = refined_on_case(found, prototype, case, side, matrix)
    return completed(case, side, prototype, matrix @ found, model, report)


def refined_prototype(model):
    """Surface that the refined LocNet is asked for: the mean bone, or the prototype of the STN that it learned from."""
    if TIBIA_PRIOR not in model.card["trained_with"]:
        return prototype_surface(find_network(STN_ID))
    prior = load_prior(TIBIA_PRIOR, "tibia")
    return Surface(prior.mean, prior.faces)


def complete_by_masked_stn(case, side, matrix, report):
    """Lay the STN's prototype on the visible bone by the mask-robust STN as printed; see `complete_by_refined_stn`."""
    model = find_network(MASKED_ID)
    report(0.1)
    found = found_by_locnet(model, case, side, matrix)
    report(0.6)
    return completed(case, side, prototype_surface(find_network(STN_ID)), matrix @ found, model, report)


def complete_by_stn(case, side, matrix, report):
    """Lay its prototype on the visible bone by the STN, which knows no masks; see `complete_by_refined_stn`."""
    model = find_network(STN_ID)
    report(0.1)
    found = found_by_locnet(model, case, side, matrix)
    report(0.6)
    return completed(case, side, prototype_surface(model), matrix @ found, model, report)


def complete_directly(case, side, matrix, report):
    """Lay the prototype on the visible bone by descending the dissimilarity alone; see `complete_by_refined_stn`."""
    model = find_network(DIRECT_ID)
    network, grid = load_network(model), grid_of(model.card["network"]["grid"])
    report(0.1)
    prototype = network.prototype.detach()
    factors = [count // other for count, other in zip(prototype.shape[2:], grid.shape_kji, strict=True)]
    shown, between = averaged(visible_image(case, side, matrix, STANDARD_GRID), STANDARD_GRID, grid)
    parameters = register_directly(
        functional.avg_pool3d(prototype, factors), shown, between, grid, DIRECT_STEPS, DIRECT_RATE
    )
    report(0.6)
    found = affine_matrix(parameters)[0].double().numpy()
    return completed(case, side, prototype_surface(model), matrix @ found, model, report)


def found_by_locnet(model, case, side, matrix):
    """(4, 4) affine, mm, by which a model's LocNet corrects a starting similarity of a case.

    Args:
        model: `modelzoo.Model` of a LocNet or an STN.
        case: a `TibiaCase`.
        side: "left" or "right".
        matrix: (4, 4) starting similarity.
    """
    network, settings = load_network(model), model.card["network"]
    grid, locnet_grid = grid_of(settings["images_grid"]), grid_of(settings["grid"])
    locnet = getattr(network, "locnet", network)
    shown, between = averaged(visible_image(case, side, matrix, grid), grid, locnet_grid)
    return located(locnet, shown, between, locnet_grid, settings["times"])[0].double().numpy()


def refined_on_case(found, prototype, case, side, matrix):
    """(4, 4) matrix of `found_by_locnet` improved on a case's visible voxels, see `refinement`.

    Args:
        found: (4, 4).
        prototype: its `Surface`, standard frame, mm.
        case, side, matrix: as for `found_by_locnet`.
    """
    from BoneReconstructionLib.meshing import voxelize

    drawn = voxelize(prototype, STANDARD_GRID.shape_kji, STANDARD_GRID.ijk_to_standard).array
    occupied = on_grid(torch.from_numpy(drawn.astype(np.float32))[None, None], refinement.GRID)
    place = side_to_right(side) @ matrix @ refinement.GRID.ijk_to_standard
    visible = Volume((case.tibia.array & ~case.fracture.array).astype(np.float32), case.tibia.ijk_to_ras)
    hidden = Volume(case.fracture.array.astype(np.float32), case.fracture.ijk_to_ras)
    images = [
        torch.from_numpy(resample(volume, refinement.GRID.shape_kji, place, fill=fill).array)[None, None]
        for volume, fill in ((visible, 0), (hidden, 1))
    ]
    return refinement.refined(found, occupied, *images)


def completed(case, side, surface, right_from_standard, model, report):
    """The `Completion` of a surface in the standard frame that belongs at a (4, 4) matrix, right-sided data."""
    placed = transformed(surface, right_from_standard)
    visible = case.visible(side)
    distance = closest_points(visible.surface.vertices[visible.trusted], placed)[1]
    used = {"id": model.id, "version": model.card["version"], "sha256": model.card["sha256"]}
    report(1.0)
    return Completion(placed, right_from_standard, used, float(np.sqrt(np.mean(distance**2))))


def prototype_surface(model):
    """Closed surface of the prototype of an STN or direct registration, standard frame, mm."""
    prototype = load_network(model).prototype.detach()[0, 0].numpy()
    return image_surface(prototype, grid_of(model.card["network"]["prototype_grid"]))


def image_surface(image, grid):
    """Closed surface of the bone in an image, in the standard frame, mm.

    Args:
        image: (K, J, I) array with values in [0, 1].
        grid: `StandardGrid`.

    Raises:
        InputError: nothing in the image is as bright as bone.
    """
    if image.max() <= SURFACE_LEVEL:
        raise InputError("The network shows no bone for this input: check the masks, or choose another method.")
    return largest_component(bright_surfaces(image, grid))


def bright_surfaces(image, grid):
    """Closed surfaces around all that is as bright as bone in an image; see `image_surface`."""
    from BoneReconstructionLib.meshing import isosurface  # the table is also made where vtk is missing

    matrix = grid.ijk_to_standard
    matrix[:3, 3] -= grid.spacing_ijk
    return isosurface(Volume(np.pad(image, 1), matrix), SURFACE_LEVEL)


def visible_image(case, side, matrix, grid):
    """The paper's masked image of a case, on the standard grid placed by a similarity or on a coarser one.

    Args:
        case: a `TibiaCase`.
        side: "left" or "right".
        matrix: (4, 4) similarity from the standard frame to the right-sided data.
        grid: `StandardGrid`.

    Returns:
        (1, 1, K, J, I) float32 tensor in [0, 1], zero outside the visible bone.
    """
    ct = case.read_ct()
    shown = windowed(ct.array) * (case.tibia.array & ~case.fracture.array)
    return _on_standard_grid(Volume(shown.astype(np.float32), ct.ijk_to_ras), side, matrix, grid)


def hidden_voxels(case, side, matrix, grid):
    """(1, 1, K, J, I) bool tensor of what is masked or outside the case's box; arguments as of `visible_image`."""
    masked = Volume(case.fracture.array.astype(np.float32), case.fracture.ijk_to_ras)
    return _on_standard_grid(masked, side, matrix, grid, fill=1) > 0.5


def _on_standard_grid(volume, side, matrix, grid, fill=0):
    ijk_to_ras = side_to_right(side) @ matrix @ STANDARD_GRID.ijk_to_standard
    values = resample(volume, STANDARD_GRID.shape_kji, ijk_to_ras, fill=fill).array
    return on_grid(torch.from_numpy(values)[None, None], grid)


@torch.inference_mode()
def located(locnet, shown, grid, locnet_grid, times=1):
    """Where a LocNet finds the prototype in images, asked once as in the paper or again about what it has aligned.

    Args:
        locnet: `LocNet`.
        shown: (N, 1, K, J, I) tensor with values in [0, 1], from `network.averaged`.
        grid: its `StandardGrid`.
        locnet_grid: `StandardGrid` that the LocNet sees.
        times: how often it is asked.

    Returns:
        (N, 4, 4) tensor of the matrices that take standard points to the images' points, mm.
    """
    matrix = torch.eye(4, device=shown.device).expand(len(shown), 4, 4)
    for _ in range(times):
        matrix = matrix @ affine_matrix(locnet(sample(shown, matrix, grid, locnet_grid)))
    return matrix


@torch.inference_mode()
def register(locnet, images, grid, locnet_grid, times=1):
    """Align images by a LocNet.

    Args:
        locnet: `LocNet`.
        images: (N, 1, K, J, I) tensor with values in [0, 1].
        grid: `StandardGrid` of the images.
        locnet_grid: `StandardGrid` that the LocNet sees, the same or an even number of times coarser.
        times: how often it is asked.

    Returns:
        (aligned images, (N, 4, 4) float64 tensor of the matrices that take standard points to the images' points, mm).
    """
    images = images.float()
    matrix = located(locnet, *averaged(images, grid, locnet_grid), locnet_grid, times)
    return sample(images, matrix, grid), matrix.double()

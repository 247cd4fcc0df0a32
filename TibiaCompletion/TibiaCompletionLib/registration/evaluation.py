"""How well registrations find a bone: in millimetres on its surface against a pose that is known, and as images.

`bonerecon evaluate registration` lays the prototype of a mask-robust STN, as a CT would show it, at known places.
"""

import json
import time

import numpy as np
import torch

from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.jobs import Progress
from BoneReconstructionLib.tensorfiles import write_atomically
from BoneReconstructionLib.virtualpatients import VirtualPatients
from BoneReconstructionLib.volumes import Volume
from TibiaCompletionLib.imagelosses import d_ssim
from TibiaCompletionLib.networkmodels import find_network
from TibiaCompletionLib.registration.inference import (
    REFINED_ID,
    found_by_locnet,
    located,
    refined_on_case,
    refined_prototype,
)
from TibiaCompletionLib.registration.network import affine_matrix, averaged, random_similarities, sample
from TibiaCompletionLib.registration.training import displaced
from TibiaCompletionLib.trainingdata import mean_person

SEED = 7
POSES = 8
GAP_MM = 50.0
COUNT = 50
SPACING_MM = (0.8, 0.8, 1.5)
MARGIN_MM = 15.0


@torch.no_grad()
def displacement_figures(locnet, points, aligned, grid, locnet_grid, times, poses=POSES):
    """How far a LocNet puts points of the mean bone from where random similarities have taken aligned images, mm.

    Args:
        locnet: `LocNet`.
        points: (V, 3) tensor of the mean bone's points, mm.
        aligned: (N, 1, K, J, I) images of people, which lie as the mean bone does.
        grid: `StandardGrid` of the images.
        locnet_grid: that of the LocNet.
        times: how often it is asked.
        poses: similarities of each image.

    Returns:
        {"unmasked_rms_mm", "gap_rms_mm"}: over points, averaged over poses and people; the gap is a band of `GAP_MM`
        across the middle of the shaft.
    """
    generator = torch.Generator(aligned.device).manual_seed(SEED)
    errors = {"unmasked_rms_mm": [], "gap_rms_mm": []}
    heights = grid.ijk_to_standard[2, 3] + grid.spacing_ijk[2] * torch.arange(grid.shape_kji[0], device=points.device)
    gap = in_gap(heights, points[:, 2])[:, None, None]
    for image in aligned.float().split(1):
        wanted = affine_matrix(random_similarities(poses, generator))
        for name, shown in zip(errors, (image, image * ~gap), strict=True):
            shown, between = averaged(shown, grid, locnet_grid)
            moved = sample(shown.expand(poses, -1, -1, -1, -1), torch.linalg.inv(wanted), between)
            found = located(locnet, moved, between, locnet_grid, times)
            apart = displaced(points, found) - displaced(points, wanted)
            errors[name].append(apart.square().sum(2).mean(1).sqrt().mean())
    return {name: round(float(torch.stack(values).mean()), 3) for name, values in errors.items()}


def in_gap(heights, bone_heights):
    """Which heights lie in a band of `GAP_MM` across the middle of a bone's heights, all in mm."""
    return abs(heights - (bone_heights.min() + bone_heights.max()) / 2) < GAP_MM / 2


@torch.no_grad()
def prototype_figures(aligned, prototype):
    """How like its prototype a registration makes images of people whom it has not seen.

    Args:
        aligned: (N, 1, K, J, I) registered images.
        prototype: (1, 1, K, J, I).

    Returns:
        {"d_ssim_7", "rmse"}: means, 0 to 1.
    """
    aligned = aligned.float()
    error = ((aligned - prototype) ** 2).flatten(1).mean(1).sqrt().mean()
    return {"d_ssim_7": round(float(d_ssim(aligned, prototype).mean()), 5), "rmse": round(float(error), 5)}


class ShownBone:
    """What `visible_image` asks of a case: a CT, the bone's mask and what is masked of it, without any surface.

    Attributes:
        tibia, fracture: bool volumes.
        read_ct: returns the CT in HU.
    """

    def __init__(self, ct, tibia, fracture):
        self.tibia, self.fracture, self.read_ct = tibia, fracture, lambda: ct


def mean_bone_scans(patients):
    """{"unmasked", "gap"}: `ShownBone`s of the mean bone's CT, the standard frame for RAS.

    Args:
        patients: `VirtualPatients`.
    """
    bone = patients.priors["tibia"].mean
    low, high = bone.min(0) - MARGIN_MM, bone.max(0) + MARGIN_MM
    shape = tuple(int(count) for count in np.ceil((high - low) / SPACING_MM)[::-1])
    frame = np.diag([*SPACING_MM, 1.0])
    frame[:3, 3] = low
    hu, labels = patients.ct(mean_person(patients), shape, frame)
    ct, tibia = Volume(hu.numpy(), frame), Volume(labels["tibia"].numpy(), frame)
    gap = np.broadcast_to(in_gap(low[2] + SPACING_MM[2] * np.arange(shape[0]), bone[:, 2])[:, None, None], shape)
    masks = {"unmasked": np.zeros(shape, dtype=bool), "gap": gap}
    return {name: ShownBone(ct, tibia, Volume(np.ascontiguousarray(mask), frame)) for name, mask in masks.items()}


def registration_errors(locate, scans, points, count, report=lambda fraction: None):
    """How far a registration puts the mean bone from where it is known to lie.

    Args:
        locate: function of (`ShownBone`, (4, 4) starting similarity) that returns the (4, 4) correction of the latter.
        scans: from `mean_bone_scans`.
        points: (V, 3) of the mean bone, mm.
        count: number of random similarities of the paper's ranges.
        report: called with the fraction done.

    Returns:
        {name of the scan: (errors (count,), seconds (count,))}: RMS distance of the points, mm on the patient, and the
        time from CT and masks to the matrix, weights read anew.
    """
    wanted = affine_matrix(random_similarities(count, torch.Generator().manual_seed(SEED))).double().numpy()
    found = {name: ([], []) for name in scans}
    for number, matrix in enumerate(wanted):
        begin = np.linalg.inv(matrix)
        for name, scan in scans.items():
            began = time.perf_counter()
            right_from_standard = begin @ locate(scan, begin)
            found[name][1].append(time.perf_counter() - began)
            apart = transform_points(right_from_standard, points) - points
            found[name][0].append(np.sqrt((apart**2).sum(1).mean()))
        report((number + 1) / count)
    return {name: tuple(np.array(values) for values in pair) for name, pair in found.items()}


def add_arguments(parser):
    """Declare the arguments of `bonerecon evaluate registration`."""
    parser.add_argument("--count", type=int, default=COUNT, metavar="N", help=f"known poses (default: {COUNT})")
    parser.add_argument("--write-card", action="store_true", help="put the errors into the model's card")


def run(arguments):
    """Run `bonerecon evaluate registration`: the refined mask-robust STN against known poses of the mean bone."""
    progress = Progress({"scans": 1, "LocNet": 3, "refined": 3})
    model = find_network(REFINED_ID)
    patients = VirtualPatients()
    scans = mean_bone_scans(patients)
    progress.report("scans", 1.0)

    def by_locnet(scan, begin):
        return found_by_locnet(model, scan, "right", begin)

    def refined(scan, begin):
        return refined_on_case(by_locnet(scan, begin), refined_prototype(model), scan, "right", begin)

    print(f"{model.id} on the mean bone at {arguments.count} known poses, RMS distance on its surface")
    measured = {"poses": arguments.count}
    for title, locate in (("LocNet", by_locnet), ("refined", refined)):
        found = registration_errors(
            locate,
            scans,
            patients.priors["tibia"].mean,
            arguments.count,
            lambda fraction, title=title: progress.report(title, fraction),
        )
        for name, (errors, seconds) in found.items():
            print(
                f"{title:8} {name:9} mean {errors.mean():.2f} mm, 95th percentile {np.percentile(errors, 95):.2f} mm, "
                f"worst {errors.max():.2f} mm; {seconds.min():.2f} s at best, {np.median(seconds):.2f} s as a rule"
            )
            measured[f"{title}, {name}, mean RMS mm"] = round(float(errors.mean()), 3)
            measured[f"{title}, {name}, worst RMS mm"] = round(float(errors.max()), 3)
    if arguments.write_card:
        card = {**model.card, "figures": {**model.card["figures"], "known_poses_of_the_mean_bone": measured}}
        text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
        write_atomically(model.folder / "model.json", text.encode())

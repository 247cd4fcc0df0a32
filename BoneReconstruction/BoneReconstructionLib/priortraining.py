"""`bonerecon train prior`: the shape prior of tibia and fibula, learned from a folder of bone surfaces.

The folder is laid out as

    llp26_left_leg.npz             26 people's left bones, vertices in correspondence, LPS mm
    tibia/<subject>_<L|R>.ply      sharper surfaces of single people
    fibula/<subject>_<L|R>.ply     those of the same people, in the same scanner frame as the tibia

1. The 26 people's bones are mirrored to the right side and brought together by generalised Procrustes analysis with
   scale; size becomes a separate number.
2. A finer template mesh replaces theirs; interpolating (butterfly) subdivision carries every person to it.
3. The sharper bones are fitted, which puts them in correspondence; what the smooth people lack on average (spines,
   rims, ridges) is added to the mean, shrunk as cross-validation between the sharper people tells.
4. Principal components of all people are the empirical modes. What the modes leave open is covered by the kernels
   below, whose figures were chosen by leaving people out one at a time.
5. The fibula is placed beside the tibia as in the sharper people, and the spread of random samples is brought to
   published human ranges (see `measurements.PUBLISHED`).
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import vtk
from scipy.spatial import cKDTree

from BoneReconstructionLib import modelzoo
from BoneReconstructionLib.distances import closest_points, surface_distances
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import side_to_right, similarity_from_points, transform_points
from BoneReconstructionLib.jobs import Progress
from BoneReconstructionLib.meshing import from_polydata, mask_surface, smooth, to_polydata, voxelize
from BoneReconstructionLib.priorsampling import random_weights, sampling_transform
from BoneReconstructionLib.shapefitting import (
    RESIDUAL_SUPPORTS_MM,
    VisibleSurface,
    fit,
    start,
    with_residual,
    without_band,
)
from BoneReconstructionLib.shapeprior import TIBIA_PRIOR, Kernel, ShapePrior
from BoneReconstructionLib.surfacefiles import read_surface
from BoneReconstructionLib.surfaces import Surface, transformed, vertex_areas, vertex_normals
from BoneReconstructionLib.tibiameasurements import PUBLISHED, TibiaLandmarks
from BoneReconstructionLib.version import VERSION

SMOOTH_PEOPLE = "llp26_left_leg.npz"
TEMPLATE_SPACING_MM = {"tibia": 2.0, "fibula": 2.5}
KERNELS = (Kernel(1.2, (60.0, 60.0, 100.0)), Kernel(0.7, (18.0, 18.0, 40.0)))
MODES = 25
LOG_SCALE_SD = 0.075
JOINT_REACH_MM = 6.0
STAGES = {"fitting tibia": 15, "fitting fibula": 15, "leaving people out": 200, "saving": 5}
CARD = {
    "licence": "MPL-2.0",
    "attribution": (
        "Learned from the LLP26 lower-limb model (musculoskeletal/models, Auckland Bioengineering Institute; J. Zhang "
        "and colleagues), MPL 2.0; GIAS3 example data 2008_1741 (J. Zhang and colleagues), MPL 2.0; Visible Human "
        "female and male bone geometries, University of Denver (DU-VHF, DU-VHM), CC BY 4.0."
    ),
    "training_data": (
        "Tibiae and fibulae of 26 people in correspondence (smooth fits, left legs), and sharper surfaces: tibia 3 "
        "bones of 2 people, fibula 5 bones of 3 people. The surfaces themselves are not part of the model."
    ),
    "input": {
        "description": "Visible surface of an adult tibia and its side; pose and size are free.",
        "frame": "RAS; left bones are mirrored in x on the way in and back on the way out.",
        "units": "mm",
    },
    "output": {
        "description": (
            "Whole healthy tibia, and fibula beside it: mean surface, empirical modes (one standard deviation each), "
            "Gaussian-process kernels, spread of the log-scale, stretch of the weights for random people."
        ),
        "frame": "Standard tibia frame: right side, +x patient right, +y anterior, +z proximal, origin at the centroid.",
        "units": "mm",
    },
    "limits": [
        "Not for clinical use.",
        "Adult tibiae without implants, deformity or earlier fracture; most of the people are from one region.",
        "Length and torsion cannot be known where the visible bone does not show them, as when an end is masked.",
        "Fine detail of the joint surfaces is that of a mean person.",
    ],
}


@dataclass(frozen=True, eq=False)
class People:
    """One bone of several people in correspondence, right side, standard frame, scale removed.

    Attributes:
        shapes: (p, n, 3) mm.
        scales: (p,) each person's size relative to the geometric mean.
        faces: (m, 3).
    """

    shapes: np.ndarray
    scales: np.ndarray
    faces: np.ndarray

    @property
    def mean(self):
        """(n, 3) mean shape."""
        return self.shapes.mean(0)


def procrustes(vertices, faces, rounds=10):
    """Generalised Procrustes analysis with scale, vertices weighted by the area they stand for.

    Args:
        vertices: (p, n, 3) right bones in any pose, mm.
        faces: (m, 3).

    Returns:
        People, in the pose of the first person, of geometric mean size.
    """
    mean = vertices[0] - vertices[0].mean(0)
    for _ in range(rounds):
        weights = vertex_areas(Surface(mean, faces))
        matrices = [similarity_from_points(person, mean, weights) for person in vertices]
        scales = np.array([1 / np.cbrt(np.linalg.det(matrix[:3, :3])) for matrix in matrices])
        shapes = np.array([transform_points(matrix, person) for matrix, person in zip(matrices, vertices)])
        # The mean keeps the people's own geometric mean size, so that it neither shrinks nor drifts.
        mean = shapes.mean(0) * np.exp(np.log(scales).mean())
    size = np.exp(np.log(scales).mean())
    return People(shapes * size, scales / size, faces)


def tibia_frame(vertices):
    """Matrix that brings a right tibia, roughly upright in RAS, into the standard frame.

    +z runs from the middle of the distal end to the middle of the plateau; +x is parallel to the tangent of the
    plateau's two posterior corners, which is the proximal axis of torsion (Strecker et al., J Bone Joint Surg Br
    79-B(6), 1997). The origin is left to the caller.
    """
    matrix = np.eye(4)
    for _ in range(5):
        points = transform_points(matrix, vertices)
        top, bottom = points[:, 2].max(), points[:, 2].min()
        plateau = points[(points[:, 2] > top - 25) & (points[:, 2] < top - 12)]
        ankle = points[(points[:, 2] < bottom + 35) & (points[:, 2] > bottom + 20)]
        z = (plateau.min(0) + plateau.max(0)) / 2 - (ankle.min(0) + ankle.max(0)) / 2
        z /= np.linalg.norm(z)
        middle = (plateau[:, 0].min() + plateau[:, 0].max()) / 2
        halves = [plateau[plateau[:, 0] > middle], plateau[plateau[:, 0] < middle]]
        corners = [half[np.argmin(half[:, 1])] for half in halves]
        x = corners[0] - corners[1]
        x -= (x @ z) * z
        x /= np.linalg.norm(x)
        turn = np.eye(4)
        turn[:3, :3] = [x, np.cross(z, x), z]
        matrix = turn @ matrix
    return matrix


def as_it_stands(vertices):
    """The identity, for a bone whose frame comes from another bone."""
    return np.eye(4)


FRAMES = {"tibia": tibia_frame, "fibula": as_it_stands}


def subdivide(vertices, faces, times=2):
    """Interpolating butterfly subdivision of (n, 3) vertices; the original vertices stay where they are."""
    butterfly = vtk.vtkButterflySubdivisionFilter()
    butterfly.SetInputData(to_polydata(Surface(vertices, faces)))
    butterfly.SetNumberOfSubdivisions(times)
    butterfly.Update()
    return from_polydata(butterfly.GetOutput())


def on_template(people, spacing_mm):
    """Carry people from their own coarse mesh to an evenly spaced template mesh.

    Args:
        people: the people on their own mesh.
        spacing_mm: voxel size of the grid that the template is meshed on, about the length of its edges.

    Returns:
        People with the template's vertices and faces.
    """
    carrier = subdivide(people.mean, people.faces)
    low, high = carrier.vertices.min(0) - 6, carrier.vertices.max(0) + 6
    matrix = np.diag([spacing_mm] * 3 + [1.0])
    matrix[:3, 3] = low
    shape = tuple(np.ceil((high - low) / spacing_mm).astype(int)[::-1])
    template = mask_surface(voxelize(carrier, shape, matrix))
    for _ in range(3):
        template = smooth(template, iterations=30, pass_band=0.05)
        vertices, _, face = closest_points(template.vertices, carrier)
        template = Surface(vertices, template.faces)
    corners = carrier.vertices[carrier.faces[face]]
    weights = barycentric(vertices, corners)
    shapes = []
    for person in people.shapes:
        fine = subdivide(person, people.faces)
        shapes.append(np.einsum("nk,nkc->nc", weights, fine.vertices[fine.faces[face]]))
    return People(np.array(shapes), people.scales, template.faces)


def barycentric(points, corners):
    """Barycentric coordinates (n, 3) of (n, 3) points in (n, 3 corners, 3) triangles whose plane they lie in."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    normal = np.cross(b - a, c - a)
    area = (normal**2).sum(1)
    u = (np.cross(c - b, points - b) * normal).sum(1) / area
    v = (np.cross(a - c, points - c) * normal).sum(1) / area
    weights = np.clip(np.stack([u, v, 1 - u - v], 1), 0, 1)
    return weights / weights.sum(1, keepdims=True)


def principal_modes(shapes, count):
    """Mean (n, 3) and the first `count` principal components (count, n, 3), each of one standard deviation, mm."""
    mean = shapes.mean(0)
    centred = (shapes - mean).reshape(len(shapes), -1)
    _, singular, vt = np.linalg.svd(centred, full_matrices=False)
    count = min(count, len(shapes) - 1)
    return mean, (singular[:count, None] * vt[:count] / np.sqrt(len(shapes) - 1)).reshape(count, -1, 3)


@dataclass(frozen=True, eq=False)
class SharpBone:
    """A fitted surface of one person: in correspondence with the template, and what the smooth people lack.

    Attributes:
        subject: the person.
        matrix: (4, 4) similarity from the standard frame to the right-sided scanner frame.
        shape: (n, 3) fitted vertices in the standard frame, scale removed, without the detail.
        detail: (n,) offset along the vertex normals that the fit left over, at scale 1, mm.
    """

    subject: str
    matrix: np.ndarray
    shape: np.ndarray
    detail: np.ndarray


def fit_sharp_bone(prior, path, start=start):
    """Fit one surface file `<subject>_<L|R>.ply`; its frame is LPS or RAS, which differ by a rotation only."""
    subject, side = path.stem.rsplit("_", 1)
    surface = transformed(read_surface(path), side_to_right({"L": "left", "R": "right"}[side]))
    visible = VisibleSurface.whole(surface)
    fitted = fit(prior, visible, start(prior, visible))
    # Coarsely: what one scan shows finer than that is its noise.
    refined = with_residual(prior, fitted, visible, RESIDUAL_SUPPORTS_MM[:1])
    moved = refined.surface.vertices - fitted.surface.vertices
    offset = (moved * vertex_normals(fitted.surface)).sum(1) / np.cbrt(np.linalg.det(fitted.matrix[:3, :3]))
    shape = prior.shape(fitted.mode_weights, fitted.kernel_weights)
    return SharpBone(subject, fitted.matrix, shape, offset)


def shared_detail(sharp):
    """What the sharper people have in common beyond the smooth ones, as offset along the normals.

    Both sides of a person count once. The average is shrunk by the share of a new person's detail that it predicts:
    with correlation r between two people and k people, k r / (1 + (k - 1) r).

    Returns:
        (offset (n,) mm, shrinkage).
    """
    subjects = sorted({bone.subject for bone in sharp})
    details = np.array([np.mean([bone.detail for bone in sharp if bone.subject == name], 0) for name in subjects])
    count = len(details)
    if count < 2:
        return np.zeros(details.shape[1]), 0.0
    correlation = np.corrcoef(details)[np.triu_indices(count, 1)].mean()
    shrinkage = max(count * correlation / (1 + (count - 1) * correlation), 0.0)
    return shrinkage * details.mean(0), float(shrinkage)


def upright_people(file, bone, frame, spacing_mm):
    """The 26 people's bones aligned, turned into the standard axes, centred, and carried to an even template.

    Args:
        file: the archive of the smooth people.
        bone: its name.
        frame: function of the mean's (n, 3) vertices that returns the (4, 4) matrix into the standard axes.
        spacing_mm: of the template.

    Returns:
        People; the origin is the centroid of the mean bone's surface.
    """
    vertices, faces = smooth_people(file, bone)
    rough = procrustes(vertices, faces)
    matrix = frame(rough.mean)
    weights = vertex_areas(Surface(rough.mean, faces))
    matrix[:3, 3] -= transform_points(matrix, rough.mean).T @ weights / weights.sum()
    upright = np.array([transform_points(matrix, shape) for shape in rough.shapes])
    return on_template(People(upright, rough.scales, faces), spacing_mm)


def bone_prior(people, sharp_files, report, start=start):
    """Template people and sharper surfaces made into one bone's prior.

    Args:
        people: the smooth people on the template.
        sharp_files: surfaces of single people.
        report: called with the fraction done.
        start: finds the pose of a sharper surface, as `shapefitting.start` does.

    Returns:
        (mean (n, 3), shapes (p, n, 3) all people, sharp bones, shrinkage of the detail).
    """
    mean, modes = principal_modes(people.shapes, MODES)
    prior = ShapePrior(mean, people.faces, modes, KERNELS, LOG_SCALE_SD)
    sharp = []
    for path in sharp_files:
        sharp.append(fit_sharp_bone(prior, path, start))
        report(len(sharp) / len(sharp_files))
    subjects = sorted({bone.subject for bone in sharp})
    extra = [np.mean([bone.shape for bone in sharp if bone.subject == name], 0) for name in subjects]
    shapes = np.concatenate([people.shapes, extra]) if extra else people.shapes
    offset, shrinkage = shared_detail(sharp) if sharp else (np.zeros(len(mean)), 0.0)
    detail = offset[:, None] * vertex_normals(Surface(mean, people.faces))
    return shapes + detail, sharp, shrinkage


def place_fibulae(tibiae, fibulae, fibula_scales, reference, reference_tibia):
    """Place each person's fibula beside the tibia, because the 26 people's bones were aligned one by one.

    The reference is the fibula of people who were scanned with both bones. Near the two joints it follows the
    person's tibia, and the person's own fibula is moved there rigidly.

    Args:
        tibiae: (p, n, 3) tibiae in the standard frame, scale 1.
        fibulae: (p, m, 3) the same people's fibulae, any pose, scale 1.
        fibula_scales: (p,) size of the fibula relative to the tibia's scale.
        reference: (m, 3) mean fibula beside the mean tibia.
        reference_tibia: (n, 3) mean tibia that the reference stands beside.

    Returns:
        (p, m, 3) fibulae in the tibia's standard frame.
    """
    distance, nearest = cKDTree(reference_tibia).query(reference)
    weight = np.exp(-((distance / JOINT_REACH_MM) ** 2))
    placed = []
    for tibia, fibula, scale in zip(tibiae, fibulae, fibula_scales):
        wanted = reference + tibia[nearest] - reference_tibia[nearest]
        own = fibula * scale
        placed.append(transform_points(similarity_from_points(own, wanted, weight, scaled=False), own))
    return np.array(placed)


def sharp_files(bones, names=("tibia", "fibula")):
    """The surface files of single people: {bone: paths}.

    Raises:
        InputError: a name that tells no side, or nobody with both bones, who say how the fibula lies beside the tibia.
    """
    files = {bone: sorted((bones / bone).glob("*.ply")) for bone in names}
    for path in (path for paths in files.values() for path in paths):
        if path.stem[-2:] not in ("_L", "_R"):
            raise InputError(f"{path} tells no side: name it <subject>_L.ply or <subject>_R.ply.")
    if not {path.name for path in files["tibia"]} & {path.name for path in files["fibula"]}:
        raise InputError(f"{bones} holds nobody with tibia and fibula: add <subject>_<L|R>.ply to both folders.")
    return files


def people_archive(bones):
    """The path of the smooth people's archive in the folder of the training bones.

    Raises:
        InputError: there is none.
    """
    archive = bones / SMOOTH_PEOPLE
    if not archive.is_file():
        raise InputError(f"{bones} holds no {SMOOTH_PEOPLE}; give the folder of the training bones.")
    if not zipfile.is_zipfile(archive):
        raise InputError(f"{archive} is not an archive of numpy arrays: copy it anew.")
    return archive


def smooth_people(file, bone):
    """The 26 people's left bones as right ones in correspondence, RAS mm.

    Returns:
        (vertices (p, n, 3), faces (m, 3)).
    """
    vertices = file[f"{bone}_vertices"].astype(float) * [-1, -1, 1] * [-1, 1, 1]  # LPS to RAS, left to right
    faces = file[f"{bone}_faces"].astype(np.int64)
    a, b, c = (vertices[0][faces[:, k]] - vertices[0].mean(0) for k in range(3))
    outward = (a * np.cross(b, c)).sum() > 0
    return vertices, faces if outward else faces[:, ::-1].copy()


def calibrate(measure, modes, still, published, seed):
    """Stretch of the sampling that gives random bones the published spread; see `priorsampling`.

    Args:
        measure: function of (standardised log-scale, mode weights (r,), kernel weights) that returns {name: value}.
        modes: number r of modes.
        still: the kernel weights of no displacement.
        published: {name: `Published`}.
        seed: of the kernels' draws.

    Returns:
        (1 + r, 1 + r) matrix to apply to standard normal log-scale and modes.
    """

    def values(*weights):
        found = measure(*weights)
        return np.array([found[name] for name in published])

    gradient = np.empty((len(published), 1 + modes))
    for k in range(1 + modes):
        step = np.zeros(1 + modes)
        step[k] = 0.5
        gradient[:, k] = values(step[0], step[1:], still) - values(-step[0], -step[1:], still)
    generator = np.random.default_rng(seed)
    draws = [values(0, np.zeros(modes), generator.standard_normal(still.shape)) for _ in range(200)]
    wanted = np.array([one.sd for one in published.values()])
    return sampling_transform(gradient, np.cov(np.array(draws).T), wanted)


def spread(measure, modes, still, published, sampling, people, seed):
    """Standard deviations of random people's measurements, of the published ones, and their ratio, by name.

    The arguments are those of `calibrate`, the sampling that it returned, and how many people are drawn.
    """
    weights = random_weights(np.random.default_rng(seed), people, modes, len(still), sampling)
    measured = [measure(*one) for one in zip(*weights, strict=True)]
    figures = {}
    for name, known in published.items():
        values = np.array([person[name] for person in measured])
        figures[name] = {
            "mean": round(float(values.mean()), 2),
            "sd": round(float(values.std(ddof=1)), 2),
            "published_mean": known.mean,
            "published_sd": known.sd,
            "sd_ratio": round(float(values.std(ddof=1) / known.sd), 2),
            "unit": known.unit,
            "source": known.source,
        }
    return figures


def leave_one_out(people, report):
    """Errors on each smooth person by a prior of the others: the whole bone, and a 60 mm gap in the shaft, ASSD mm."""
    errors = {"whole": [], "shaft gap 60 mm": []}
    for person, scale in enumerate(people.scales):
        mean, modes = principal_modes(np.delete(people.shapes, person, 0), MODES)
        prior = ShapePrior(mean, people.faces, modes, KERNELS, LOG_SCALE_SD)
        truth = Surface(people.shapes[person] * scale, people.faces)
        height = truth.vertices[:, 2]
        middle = (height.min() + height.max()) / 2
        everything = VisibleSurface.whole(truth)
        for name, visible in (
            ("whole", everything),
            ("shaft gap 60 mm", without_band(truth, height, middle - 30, middle + 30)),
        ):
            fitted = with_residual(prior, fit(prior, visible, start(prior, visible)), visible)
            distances = surface_distances(fitted.surface, truth)
            if name == "whole":
                errors[name].append(distances.assd)
                continue
            inside = np.abs(height - middle) < 30
            inside_fitted = np.abs(fitted.surface.vertices[:, 2] - middle) < 30
            both = distances.a_to_b[inside_fitted], distances.b_to_a[inside]
            errors[name].append(np.mean([np.abs(one).mean() for one in both]))
        report((person + 1) / len(people.scales))
    return {
        name: {"mean_assd_mm": round(float(np.mean(values)), 3), "worst_assd_mm": round(float(np.max(values)), 3)}
        for name, values in errors.items()
    }


def train(bones, output, seed=0, progress=None):
    """Learn the prior from a folder of bones and write it as a model folder.

    Args:
        bones: the folder described at the top of this file.
        output: the model's folder; its name becomes the model's id.
        seed: of the random people that the spread is measured on.
        progress: a `jobs.Progress` with the stages of `STAGES`, or None.

    Returns:
        The model card.

    Raises:
        InputError: the folder lacks what it should hold.
    """
    bones, output = Path(bones), Path(output)
    archive = people_archive(bones)
    files = sharp_files(bones)

    def report(stage):
        return lambda fraction: progress.report(stage, fraction) if progress else None

    people, sharp, shapes, shrinkage = {}, {}, {}, {}
    with np.load(archive, allow_pickle=False) as file:
        for bone in ("tibia", "fibula"):
            people[bone] = upright_people(file, bone, FRAMES[bone], TEMPLATE_SPACING_MM[bone])
            shapes[bone], sharp[bone], shrinkage[bone] = bone_prior(
                people[bone], files[bone], report(f"fitting {bone}")
            )

    legs = joint_legs(people, shapes, sharp)
    mean, modes = principal_modes(legs, MODES)
    count = len(people["tibia"].mean)
    tibia = ShapePrior(mean[:count], people["tibia"].faces, modes[:, :count], KERNELS, LOG_SCALE_SD)
    landmarks = TibiaLandmarks(tibia.mean, tibia.faces)

    def measure(log_scale, mode_weights, kernel_weights):
        shape = tibia.shape(mode_weights, kernel_weights) * np.exp(tibia.log_scale_sd * log_scale)
        return landmarks.measure(shape)

    still = np.zeros((tibia.vertex_basis.shape[1], 3))
    sampling = calibrate(measure, len(tibia.modes), still, PUBLISHED, seed)
    tensors = {"sampling": sampling.astype(np.float32)}
    for bone, part in (("tibia", slice(0, count)), ("fibula", slice(count, None))):
        tensors[f"{bone}.mean"] = mean[part].astype(np.float32)
        tensors[f"{bone}.faces"] = people[bone].faces.astype(np.uint16)
        tensors[f"{bone}.modes"] = modes[:, part].astype(np.float16)
    figures = {
        "left_out_people": leave_one_out(people["tibia"], report("leaving people out")),
        "spread_of_1000_random_tibiae": spread(measure, len(tibia.modes), still, PUBLISHED, sampling, 1000, seed + 1),
        "shared_detail_shrinkage": {bone: round(value, 3) for bone, value in shrinkage.items()},
        "people": len(legs),
    }
    card = {**CARD, "id": output.name, "version": VERSION, "figures": figures}
    setting = {
        "kernels": [{"sd": kernel.sd, "length": list(kernel.length)} for kernel in KERNELS],
        "log_scale_sd": LOG_SCALE_SD,
    }
    card["bones"] = {"tibia": setting, "fibula": setting}
    modelzoo.save_model(output, card, tensors)
    return card


def joint_legs(people, shapes, sharp):
    """Tibia and fibula of each person in the tibia's standard frame, (p, n + m, 3).

    The smooth people come first; of the sharper ones, those who were scanned with both bones follow.
    """
    both = sorted({bone.subject for bone in sharp["tibia"]} & {bone.subject for bone in sharp["fibula"]})
    subjects = {bone: sorted({one.subject for one in sharp[bone]}) for bone in sharp}
    smooth = len(people["tibia"].scales)
    tibiae = [shapes["tibia"][smooth + subjects["tibia"].index(name)] for name in both]
    seen = []
    for name in both:
        beside = []
        for tibia in (bone for bone in sharp["tibia"] if bone.subject == name):
            for fibula in (bone for bone in sharp["fibula"] if bone.subject == name):
                relative = np.linalg.inv(tibia.matrix) @ fibula.matrix
                if np.linalg.norm(relative[:3, 3]) < 100:  # the same leg, not the other one
                    own = shapes["fibula"][smooth + subjects["fibula"].index(name)]
                    beside.append(transform_points(relative, own))
        seen.append(np.mean(beside, 0))
    reference, reference_tibia = np.mean(seen, 0), np.mean(tibiae, 0)
    placed = place_fibulae(
        shapes["tibia"][:smooth],
        shapes["fibula"][:smooth],
        people["fibula"].scales / people["tibia"].scales,
        reference,
        reference_tibia,
    )
    return np.concatenate(
        [
            np.concatenate([shapes["tibia"][:smooth], placed], 1),
            np.concatenate([np.array(tibiae), np.array(seen)], 1),
        ]
    )


def add_arguments(parser):
    """Declare the arguments of `bonerecon train prior`."""
    parser.add_argument("--bones", required=True, metavar="FOLDER", help="folder of the training bones")
    parser.add_argument(
        "--output",
        metavar="DIR",
        default=str(Path(__file__).parent / "models" / TIBIA_PRIOR),
        help="the model's folder; a model in it is replaced (default: the bundled one)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random people that are measured")


def run(arguments):
    """Run `bonerecon train prior`."""
    card = train(arguments.bones, arguments.output, arguments.seed, Progress(STAGES))
    print(json.dumps(card["figures"], indent=2))

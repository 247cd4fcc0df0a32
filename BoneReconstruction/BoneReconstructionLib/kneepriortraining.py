"""`bonerecon train knee-prior`: the shape prior of the knee's four bones, learned from a folder of bone surfaces.

The folder is that of `priortraining`, with femur/ and patella/ beside tibia/ and fibula/, and so are the steps: the 26
people's bones are aligned and carried to fine templates, and what the sharper bones have in common beyond them is
added. New is here:

1. The bones of a person vary together: the modes are those of all four bones side by side, each in its own standard
   frame, because the people's bones were aligned one by one. The size relative to the person's is part of the shape.
2. Shafts are cut REACH_MM from the knee and closed by a flat fan, whose middle is the bone's last vertex: an X-ray of
   a knee shows no hip and no ankle.
3. The frame of the femur is that of its mechanical axis and posterior condyles, with the origin on the flexion axis;
   that of tibia and fibula is the tibia's, with the origin in the middle of the plateau; that of the patella stands
   as it does in the extended leg.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from BoneReconstructionLib import modelzoo
from BoneReconstructionLib.distances import surface_distances
from BoneReconstructionLib.frames import rotation_about, similarity_from_points, transform_points
from BoneReconstructionLib.jobs import Progress
from BoneReconstructionLib.kneemeasurements import PUBLISHED, KneeLandmarks
from BoneReconstructionLib.priortraining import (
    CARD,
    KERNELS,
    LOG_SCALE_SD,
    MODES,
    as_it_stands,
    bone_prior,
    calibrate,
    joint_legs,
    people_archive,
    principal_modes,
    sharp_files,
    spread,
    tibia_frame,
    upright_people,
)
from BoneReconstructionLib.shapefitting import VisibleSurface, fit
from BoneReconstructionLib.shapefitting import start as start_of_long_bone
from BoneReconstructionLib.shapeprior import Kernel, ShapePrior
from BoneReconstructionLib.surfaces import Surface, vertex_areas
from BoneReconstructionLib.version import VERSION

BONES = ("femur", "tibia", "fibula", "patella")
TEMPLATE_SPACING_MM = {"femur": 2.4, "tibia": 2.4, "fibula": 2.5, "patella": 1.8}
# The patella is too small for the long bones' smooth kernel.
PATELLA_KERNELS = (Kernel(0.7, (18.0, 18.0, 18.0)),)
# An adult's shaft is seen for 75 mm on either side of the joint by a detector of 300 mm that magnifies twice.
REACH_MM = 170.0
HEAD_MM, HEAD_TOLERANCE_MM = 45.0, 1.5
CONDYLE_BAND_MM, FLEXION_FACET_MM = 6.0, 22.0
LEFT_OUT_POINTS = 1500
STAGES = {
    "fitting femur": 60,
    "fitting tibia": 15,
    "fitting fibula": 15,
    "fitting patella": 10,
    "leaving people out": 90,
}
KNEE_CARD = CARD | {
    "attribution": CARD["attribution"].replace(
        "GIAS3 example data 2008_1741", "GIAS2 and GIAS3 example data (GIAS2-*, GIAS3-2008_1741)"
    ),
    "training_data": (
        "Femora, tibiae, fibulae and patellae of 26 people in correspondence (smooth fits, left legs), and sharper "
        "surfaces: femur 9 bones of 9 people, tibia 3 of 2, fibula 5 of 3, patella 4 of 2. The surfaces themselves are "
        "not part of the model."
    ),
    "input": {
        "description": "Two X-rays or the visible surfaces of an adult knee and its side; pose and size are free.",
        "frame": "RAS; left bones are mirrored in x on the way in and back on the way out.",
        "units": "mm",
    },
    "output": {
        "description": (
            "Healthy distal femur, proximal tibia and fibula, and patella: mean surfaces, empirical modes that the "
            "bones share (one standard deviation each), Gaussian-process kernels, spread of the log-scale, stretch of "
            f"the weights for random people. Shafts end {REACH_MM:g} mm from the knee in a fan about the last vertex."
        ),
        "frame": (
            "Right side, +x patient right, +y anterior, +z proximal. Femur: z along the mechanical axis, x parallel to "
            "the posterior condyles, origin in the middle of the flexion axis. Tibia and fibula: the tibia's standard "
            "axes, origin in the middle of the plateau. Patella: as in the extended leg, origin at the centroid."
        ),
        "units": "mm",
    },
    "limits": [
        "Not for clinical use.",
        "Adult knees without implants, deformity or earlier fracture; most of the people are from one region.",
        "How the bones lie to each other is not learned: the people's bones were aligned one by one.",
        "Fine detail of the joint surfaces is that of a mean person.",
    ],
}


@dataclass(frozen=True, eq=False)
class KneePeople:
    """The bones of several people in their standard frames, right side, of geometric mean size.

    Attributes:
        shapes: {bone: (p, n, 3) mm}.
        faces: {bone: (m, 3)}.
        scales: (p,) each person's size relative to the geometric mean.
    """

    shapes: dict[str, np.ndarray]
    faces: dict[str, np.ndarray]
    scales: np.ndarray


def sphere_through(points):
    """Centre (d,) and radius of the sphere (in the plane, circle) that best fits (n, d) points, algebraically."""
    system = np.column_stack([2 * points, np.ones(len(points))])
    solution = np.linalg.lstsq(system, (points**2).sum(1), rcond=None)[0]
    centre = solution[:-1]
    return centre, float(np.sqrt(solution[-1] + centre @ centre))


def femoral_head(vertices):
    """Centre (3,) of the head of a whole right femur, roughly upright, by a sphere through its medial upper end."""
    top = vertices[vertices[:, 2] > vertices[:, 2].max() - HEAD_MM]
    near = top[top[:, 0] < np.percentile(top[:, 0], 40)]
    for _ in range(8):
        centre, radius = sphere_through(near)
        near = top[np.abs(np.linalg.norm(top - centre, axis=1) - radius) < HEAD_TOLERANCE_MM]
    return centre


def condyle_centres(vertices):
    """Centres, medial and lateral (2, 3), of the circles of the posterior condyles of a right femur, upright.

    They are the flexion facet centres, about which the knee flexes (Iwaki et al., J Bone Joint Surg Br
    82-B(8):1189-1195, 2000).
    """
    low = vertices[vertices[:, 2] < vertices[:, 2].min() + 50]
    middle = (low[:, 0].min() + low[:, 0].max()) / 2
    centres = []
    for side in (-1, 1):
        half = low[side * (low[:, 0] - middle) > 0]
        rear = half[np.argmin(half[:, 1])]
        band = half[np.abs(half[:, 0] - rear[0]) < CONDYLE_BAND_MM]
        centre = rear[1:] + [FLEXION_FACET_MM, 0]
        for _ in range(6):
            away = band[:, 1:] - centre
            angle = np.degrees(np.arctan2(away[:, 1], -away[:, 0]))  # from backwards, positive upwards
            distance = np.linalg.norm(away, axis=1)
            facet = (angle > -75) & (angle < 30) & (np.abs(distance - np.median(distance[np.abs(angle) < 45])) < 3)
            centre, _ = sphere_through(band[facet, 1:])
        centres.append([rear[0], *centre])
    return np.array(centres)


def femur_frame(vertices):
    """Matrix that brings a whole right femur, roughly upright in RAS, into the standard frame of the knee's femur."""
    matrix = np.eye(4)
    for _ in range(5):
        points = transform_points(matrix, vertices)
        medial, lateral = condyle_centres(points)
        origin = (medial + lateral) / 2
        z = femoral_head(points) - origin
        z /= np.linalg.norm(z)
        x = lateral - medial
        x -= (x @ z) * z
        x /= np.linalg.norm(x)
        turn = np.eye(4)
        turn[:3, :3] = [x, np.cross(z, x), z]
        turn[:3, 3] = -turn[:3, :3] @ origin
        matrix = turn @ matrix
    return matrix


def plateau_middle(tibia):
    """Middle (3,) of the plateau of an upright tibia, (n, 3): between the extremes of the head, at its mean height."""
    head = tibia[tibia[:, 2] > tibia[:, 2].max() - 17]
    middle = (head.min(0) + head.max(0)) / 2
    near = np.abs(np.linalg.norm(head[:, :2] - middle[:2], axis=1) - 20) < 6
    return np.array([*middle[:2], np.percentile(head[near, 2], 90)])


def start_upright(prior, visible):
    """Pose of a bone whose scan stands upright, in RAS or in LPS, for bones that are not long; see `shapefitting.start`.

    Returns:
        (4, 4) similarity data_from_standard.
    """
    points = visible.surface.vertices
    weights = vertex_areas(visible.surface)
    centre = weights @ points / weights.sum()
    own = vertex_areas(Surface(prior.mean, prior.faces))
    own_centre = own @ prior.mean / own.sum()
    size = np.sqrt(
        (weights @ ((points - centre) ** 2).sum(1) / weights.sum())
        / (own @ ((prior.mean - own_centre) ** 2).sum(1) / own.sum())
    )
    fits = []
    for angle in (0.0, np.pi):
        matrix = np.eye(4)
        matrix[:3, :3] = size * rotation_about((0, 0, 1), angle)
        matrix[:3, 3] = centre - matrix[:3, :3] @ own_centre
        fits.append(fit(prior, visible, matrix, points=LEFT_OUT_POINTS))
    best = min(fits, key=lambda one: surface_distances(one.surface, visible.surface).assd)
    return best.matrix


def cut(shapes, faces, kept):
    """Cut a bone's shaft off and close it by a fan about the middle of the cut, the last vertex.

    Args:
        shapes: (p, n, 3) people.
        faces: (m, 3) of a closed surface.
        kept: (n,) bool, the vertices that stay; one edge loop bounds them.

    Returns:
        (shapes (p, k, 3), faces of a closed surface).
    """
    faces = faces[kept[faces].all(1)]
    used, faces = np.unique(faces, return_inverse=True)
    faces = faces.reshape(-1, 3)
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    inner = np.isin(start * len(used) + end, end * len(used) + start)
    rim = np.column_stack([start, end])[~inner]
    fan = np.column_stack([rim[:, ::-1], np.full(len(rim), len(used))])
    shapes = shapes[:, used]
    middle = shapes[:, np.unique(rim)].mean(1, keepdims=True)
    return np.concatenate([shapes, middle], 1), np.concatenate([faces, fan])


def aligned(shapes, rounds=5):
    """(p, n, 3) people moved rigidly, (p, 4, 4) of them, onto their mean; the mean stays where it was."""
    mean = shapes.mean(0)
    for _ in range(rounds):
        motions = np.array([similarity_from_points(shape, mean, scaled=False) for shape in shapes])
        moved = np.array([transform_points(motion, shape) for motion, shape in zip(motions, shapes, strict=True)])
        back = similarity_from_points(moved.mean(0), mean, scaled=False)
        mean = transform_points(back, moved.mean(0))
    motions = np.array([similarity_from_points(shape, mean, scaled=False) for shape in shapes])
    return motions


def knee_people(bones, report):
    """The 26 people's knees with the sharper bones' shared detail.

    Args:
        bones: folder of the training bones.
        report: called with (stage, fraction done).

    Returns:
        (KneePeople, {bone: shrinkage of the detail}).

    Raises:
        InputError: the folder lacks what it should hold.
    """
    archive, files = people_archive(bones), sharp_files(bones, BONES)
    # The whole femur's frame ends on the flexion axis; only its axes count before the bones are cut.
    frames = {"femur": femur_frame, "tibia": tibia_frame, "fibula": as_it_stands, "patella": as_it_stands}
    starts = dict.fromkeys(BONES, start_of_long_bone) | {"patella": start_upright}
    people, shapes, sharp, shrinkage = {}, {}, {}, {}
    with np.load(archive, allow_pickle=False) as file:
        for bone in BONES:
            people[bone] = upright_people(file, bone, frames[bone], TEMPLATE_SPACING_MM[bone])
            shapes[bone], sharp[bone], shrinkage[bone] = bone_prior(
                people[bone],
                files[bone],
                lambda fraction, bone=bone: report(f"fitting {bone}", fraction),
                starts[bone],
            )
    legs = {bone: people[bone] for bone in ("tibia", "fibula")}
    count, tibia = len(people["tibia"].scales), len(people["tibia"].mean)
    both = joint_legs(legs, shapes, {bone: sharp[bone] for bone in legs})[:count]
    shapes = {
        "femur": shapes["femur"][:count],
        "tibia": both[:, :tibia],
        "fibula": both[:, tibia:],
        "patella": shapes["patella"][:count],
    }
    person = np.sqrt(people["femur"].scales * people["tibia"].scales)
    person /= np.exp(np.log(person).mean())
    # Tibia and fibula stand side by side at the tibia's scale.
    own = {bone: people["tibia" if bone == "fibula" else bone].scales for bone in BONES}
    faces = {bone: people[bone].faces for bone in BONES}
    shapes = {bone: shapes[bone] * (own[bone] / person)[:, None, None] for bone in BONES}
    return KneePeople(*cut_and_aligned(shapes, faces), person), shrinkage


def cut_and_aligned(shapes, faces):
    """Whole bones cut REACH_MM from the knee and aligned at the knee; see the top of this file for the frames.

    Args:
        shapes: {bone: (p, n, 3)} of `BONES`, upright; the fibula stands beside the tibia.
        faces: {bone: (m, 3)}.

    Returns:
        ({bone: (p, k, 3)}, {bone: faces}).
    """
    femur, tibia = shapes["femur"].mean(0), shapes["tibia"].mean(0)
    frame = femur_frame(femur)
    femora = np.array([transform_points(frame, shape) for shape in shapes["femur"]])
    plateau = plateau_middle(tibia)
    legs = {bone: shapes[bone] - plateau for bone in ("tibia", "fibula")}
    keep = {"femur": femora.mean(0)[:, 2] < REACH_MM} | {
        bone: leg.mean(0)[:, 2] > -REACH_MM for bone, leg in legs.items()
    }
    whole = {"femur": femora, **legs}
    done = {bone: cut(whole[bone], faces[bone], keep[bone]) for bone in keep}
    done["patella"] = (shapes["patella"], faces["patella"])
    motions = {bone: aligned(done[bone][0]) for bone in ("femur", "tibia", "patella")}
    motions["fibula"] = motions["tibia"]
    moved = {
        bone: np.array([transform_points(motion, shape) for motion, shape in zip(motions[bone], done[bone][0])])
        for bone in BONES
    }
    return moved, {bone: done[bone][1] for bone in BONES}


def bone_kernels(bone):
    """The kernels of a bone's prior."""
    return PATELLA_KERNELS if bone == "patella" else KERNELS


def priors_of(people):
    """{bone: ShapePrior} of `KneePeople`; the r-th modes of all bones belong together."""
    sizes = np.cumsum([people.shapes[bone].shape[1] for bone in BONES])
    mean, modes = principal_modes(np.concatenate([people.shapes[bone] for bone in BONES], 1), MODES)
    parts = zip(BONES, np.split(mean, sizes[:-1]), np.split(modes, sizes[:-1], 1), strict=True)
    return {
        bone: ShapePrior(own_mean, people.faces[bone], own_modes, bone_kernels(bone), LOG_SCALE_SD)
        for bone, own_mean, own_modes in parts
    }


def measuring(priors, landmarks):
    """Function of (log-scale, mode weights, kernel weights of all bones one after the other) and its zero weights."""
    ranks = {bone: prior.vertex_basis.shape[1] for bone, prior in priors.items()}
    ends = np.cumsum(list(ranks.values()))

    def measure(log_scale, mode_weights, kernel_weights):
        own = dict(zip(priors, np.split(kernel_weights, ends[:-1]), strict=True))
        size = np.exp(LOG_SCALE_SD * log_scale)
        return landmarks.measure({bone: size * prior.shape(mode_weights, own[bone]) for bone, prior in priors.items()})

    return measure, np.zeros((ends[-1], 3))


def leave_one_out(people, report):
    """ASSD in mm on each left-out person's bones, by a prior of the others fitted to the whole surface."""
    errors = {bone: [] for bone in BONES}
    for person, scale in enumerate(people.scales):
        others = KneePeople(
            {bone: np.delete(shapes, person, 0) for bone, shapes in people.shapes.items()},
            people.faces,
            np.delete(people.scales, person),
        )
        for bone, prior in priors_of(others).items():
            truth = Surface(people.shapes[bone][person] * scale, people.faces[bone])
            fitted = fit(prior, VisibleSurface.whole(truth), np.diag([scale] * 3 + [1.0]), points=LEFT_OUT_POINTS)
            errors[bone].append(surface_distances(fitted.surface, truth).assd)
        report("leaving people out", (person + 1) / len(people.scales))
    return {
        bone: {"mean_assd_mm": round(float(np.mean(own)), 3), "worst_assd_mm": round(float(np.max(own)), 3)}
        for bone, own in errors.items()
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
    output = Path(output)
    report = progress.report if progress else lambda stage, fraction: None
    people, shrinkage = knee_people(Path(bones), report)
    priors = priors_of(people)
    landmarks = KneeLandmarks({bone: prior.mean for bone, prior in priors.items()})
    measure, still = measuring(priors, landmarks)
    modes = len(priors["femur"].modes)
    sampling = calibrate(measure, modes, still, PUBLISHED, seed)
    tensors = {"sampling": sampling.astype(np.float32)}
    for bone, prior in priors.items():
        tensors[f"{bone}.mean"] = prior.mean.astype(np.float32)
        tensors[f"{bone}.faces"] = prior.faces.astype(np.uint16)
        tensors[f"{bone}.modes"] = prior.modes.astype(np.float16)
    figures = {
        "left_out_people": leave_one_out(people, report),
        "spread_of_1000_random_knees": spread(measure, modes, still, PUBLISHED, sampling, 1000, seed + 1),
        "shared_detail_shrinkage": {bone: round(value, 3) for bone, value in shrinkage.items()},
        "people": len(people.scales),
    }
    settings = {
        bone: {
            "kernels": [{"sd": kernel.sd, "length": list(kernel.length)} for kernel in prior.kernels],
            "log_scale_sd": prior.log_scale_sd,
        }
        for bone, prior in priors.items()
    }
    card = {**KNEE_CARD, "id": output.name, "version": VERSION, "figures": figures, "bones": settings}
    modelzoo.save_model(output, card, tensors)
    return card


def add_arguments(parser):
    """Declare the arguments of `bonerecon train knee-prior`."""
    parser.add_argument("--bones", required=True, metavar="FOLDER", help="folder of the training bones")
    parser.add_argument(
        "--output",
        metavar="DIR",
        default=str(Path(__file__).parent / "models" / "knee-prior"),
        help="the model's folder; a model in it is replaced (default: the bundled one)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random people that are measured")


def run(arguments):
    """Run `bonerecon train knee-prior`."""
    card = train(arguments.bones, arguments.output, arguments.seed, Progress(STAGES))
    print(json.dumps(card["figures"], indent=2))

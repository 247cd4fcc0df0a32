"""`bonerecon train tibia`: steps 1 to 3 of the masked tibia completion paper, for every row and column of its table 1.

Training people are made on the training device, so that a plain clone with torch and MONAI is enough; a folder of real
CTs may take their place. A training that was cut short goes on with --resume to the very same weights.
"""

import json
import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.jobs import RESULT, Progress
from BoneReconstructionLib.modelzoo import Model
from BoneReconstructionLib.shapefitting import spread_over
from BoneReconstructionLib.shapeprior import TIBIA_PRIOR, load_prior
from BoneReconstructionLib.tensorfiles import read_tensors, write_atomically, write_tensors
from BoneReconstructionLib.version import VERSION
from BoneReconstructionLib.virtualpatients import VirtualPatients
from TibiaCompletionLib.autoencoders.evaluation import reconstruction_figures
from TibiaCompletionLib.autoencoders.pca import Pca
from TibiaCompletionLib.autoencoders.training import TARGETS, vae_loss, vqvae_loss
from TibiaCompletionLib.imagelosses import d_ssim
from TibiaCompletionLib.networkmodels import (
    build,
    grid_settings,
    load_network,
    real_people,
    save_network,
    virtual_people,
)
from TibiaCompletionLib.precision import chosen_device
from TibiaCompletionLib.randommasks import random_blocks, random_masks
from TibiaCompletionLib.registration.evaluation import displacement_figures, prototype_figures
from TibiaCompletionLib.registration.inference import DIRECT_RATE, DIRECT_STEPS, TIMES, located
from TibiaCompletionLib.registration.network import (
    DirectRegistration,
    PrototypeRegistration,
    affine_matrix,
    averaged,
    sample,
)
from TibiaCompletionLib.registration.training import (
    direct_loss,
    displacement_loss,
    masked_stn_loss,
    register_directly,
    stn_loss,
)
from TibiaCompletionLib.shaperegression.network import PriorVertices
from TibiaCompletionLib.shaperegression.training import PeoplePool, random_input, shape_loss
from TibiaCompletionLib.trainingcts import check_cases, check_number, find_cases, real_image, split
from TibiaCompletionLib.trainingdata import PersonImages, in_scanner, left_out_seeds, on_mean, training_seeds
from TibiaCompletionLib.trainingloop import Interrupted, Schedule, Surroundings, optimise, seeded, stage_seed
from TibiaCompletionLib.trainingpresets import DEFAULT_PRESET, PRESETS, chosen_preset

ROWS = ("none", "direct", "stn")
KINDS = ("vae", "vqvae")
# Step 3 learns from images aligned by the STN.
ALIGNED_BY = "stn"
IMAGES_AT_ONCE = 16
LEFT_OUT = 8
# Points of the mean bone at which the refined LocNet's answers are compared.
POINTS = 200
# An eighth of the refined LocNet's images are whole.
UNMASKED_SHARE = 0.125
PARTS = ("shape", "direct", "stn", "stn-masked", "stn-refined", "autoencoders")
STAGES = {
    "people": 3,
    "shape": 4,
    "direct": 3,
    "direct-prototype": 1,
    "stn": 3,
    "stn-prototype": 1,
    "stn-masked": 3,
    "stn-refined": 6,
    **{f"pca-{row}": 0.2 for row in ROWS},
    **{f"{kind}-{row}": 3 for row in ROWS for kind in KINDS},
    **{f"{kind}-masked-{target}": 3 for target in TARGETS for kind in KINDS},
}
SETTINGS = "settings.json"
LOG = "log"
CHECKPOINTS = "checkpoints"
MODELS = "models"


class TibiaTraining:
    """All trainings of the table and beside it; each is done once and leaves a model folder behind.

    Args:
        folder: where models, checkpoints and logs go.
        preset: `Preset`.
        seed: of everything random.
        device: torch device.
        surroundings: `trainingloop.Surroundings`.
        cases: `trainingcts.CtCase`s to learn from and those that are left out; virtual people when None.
    """

    def __init__(self, folder, preset, seed, device, surroundings, cases=None):
        self.folder, self.preset, self.seed, self.device = Path(folder), preset, seed, torch.device(device)
        self.surroundings, self.cases = surroundings, cases
        self.coarse = preset.grid.coarser(preset.registration_factor)
        self.figures = {}

    @cached_property
    def raw(self):
        """(N, 1, K, J, I) float16 raw images of the training people."""
        return self._images("raw", 0, self.preset.grid)

    @cached_property
    def left_out(self):
        """(M, 1, K, J, I) float16 raw images of people that no training sees."""
        return self._images("left-out", 1, self.preset.grid)

    @cached_property
    def shown(self):
        """(the raw images as registrations are trained on them, float16, their grid), see `network.averaged`."""
        parts = [averaged(part.float(), self.preset.grid, self.coarse) for part in self.raw.split(IMAGES_AT_ONCE)]
        return torch.cat([images.half() for images, _ in parts]), parts[0][1]

    def _sources(self, left_out):
        """Seeds or cases of the training people (0) or of the left-out ones (1)."""
        if self.cases is not None:
            return self.cases[left_out]
        return left_out_seeds(LEFT_OUT) if left_out else training_seeds(self.preset.people)

    def _images(self, name, left_out, grid, place=in_scanner):
        """Images of people, float16; those made before the time was over are not made again.

        Args:
            name: of the file that keeps them.
            left_out: 0: training people, 1: left-out ones.
            grid: `StandardGrid`.
            place: of virtual people, see `PersonImages`; real ones lie as they were scanned.
        """
        path, sources = self.surroundings.folder / f"{name}.safetensors", self._sources(left_out)
        images = [*torch.from_numpy(read_tensors(path)["images"])] if path.exists() else []
        if len(images) < len(sources):
            image_of = PersonImages(grid, self.device, place) if self.cases is None else self._reader(grid)
            for number in range(len(images), len(sources)):
                images.append(image_of(sources[number]).cpu())
                self.surroundings.report("people", len(images) / len(sources))
                if self.surroundings.over or len(images) == len(sources):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_tensors(path, {"images": torch.stack(images).numpy()})
                    break
            if len(images) < len(sources):
                raise Interrupted("people")
        return torch.stack(images).to(self.device)

    @staticmethod
    def _reader(grid):
        return lambda case: torch.from_numpy(real_image(case, grid))

    def run(self, parts=PARTS):
        """Everything: the shape regressor, which needs no images, then the paper's methods in its order.

        Args:
            parts: of `PARTS`; what they need themselves is trained, too.

        Raises:
            Interrupted: the time is over.
        """
        if "shape" in parts and self.cases is None:
            self.shape()
        if "direct" in parts:
            self.direct()
        if "stn" in parts:
            self.stn()
        if "stn-masked" in parts:
            self.masked_stn()
        if "stn-refined" in parts:
            self.refined_stn()
        if "autoencoders" in parts:
            self.autoencoders()

    def autoencoders(self):
        """Step 2 for each row of the table, and step 3."""
        for row in ROWS:
            images = self.aligned(row)
            self.pca(row, images)
            for kind in KINDS:
                self.autoencoder(kind, row, images)
            if row == ALIGNED_BY:
                for target in TARGETS:
                    for kind in KINDS:
                        self.autoencoder(kind, row, images, target)

    def shape(self):
        """The regressor of the prior's pose and weights, from virtual people's masks."""
        preset, grid = self.preset, self.preset.grid.coarser(self.preset.shape_factor)
        patients = VirtualPatients(device=self.device)
        vertices = PriorVertices(patients.priors["tibia"], self.device)
        settings = {
            "kind": "shape",
            "grid": grid_settings(grid),
            "widths": list(preset.shape_widths),
            "modes": vertices.modes.shape[0],
            "kernels": vertices.basis.shape[1],
        }

        def train():
            regressor = seeded(lambda: build(settings), self.seed, "shape").to(self.device)
            pool = PeoplePool(patients, grid, preset.people, vertices)

            def loss_of(generator, done):
                people = self._chosen(preset.people, generator, preset.shape_batch)
                masks, places = pool.at(round(done * preset.shape_steps), people)
                shown = random_input(masks, places, pool.grid, grid, generator)
                return shape_loss(regressor, vertices, *shown)

            self._optimise("shape", regressor, loss_of, preset.shape_steps, preset.shape_rate)
            return regressor

        def measure(regressor):
            pool = PeoplePool(patients, grid, LEFT_OUT, vertices, left_out_seeds(1)[0])
            shown = random_input(*pool.at(0, torch.arange(LEFT_OUT)), pool.grid, grid, self._generator("measured"))
            _, found = shape_loss(regressor, vertices, *shown)
            return {name: round(float(value), 3) for name, value in found.items()}

        return self._model("tibia-shape", settings, train, measure, [patients.priors["tibia"].card])

    def direct(self):
        """Step 1 without a network: the prototype and every training image's parameters."""
        settings = {
            "kind": "direct",
            "grid": grid_settings(self.coarse),
            "prototype_grid": grid_settings(self.preset.grid),
            "images": len(self.raw),
        }
        return self._prototype_model("direct", settings, self._train_direct)

    def stn(self):
        """Step 1: LocNet and prototype together."""
        settings = {
            "kind": "stn",
            "grid": grid_settings(self.coarse),
            "images_grid": grid_settings(self.preset.grid),
            "prototype_grid": grid_settings(self.preset.grid),
            "widths": list(self.preset.locnet_widths),
            "times": 1,
        }
        return self._prototype_model("stn", settings, self._train_stn)

    def masked_stn(self):
        """Step 3 as printed: the mask-robust LocNet, by masked and moved images that the STN has aligned."""
        grid = self.preset.grid
        settings = {
            "kind": "locnet",
            "grid": grid_settings(self.coarse),
            "images_grid": grid_settings(grid),
            "widths": list(self.preset.locnet_widths),
            "times": 1,
        }

        def train():
            aligned = self.aligned(ALIGNED_BY)
            locnet = seeded(lambda: build(settings), self.seed, "stn-masked").to(self.device)

            def loss_of(generator, done):
                images = aligned[self._chosen(len(aligned), generator)].float()
                hidden = random_blocks(grid, len(images), generator)
                return masked_stn_loss(locnet, images, hidden, grid, self.coarse, generator)

            self._optimise("stn-masked", locnet, loss_of, self.preset.registration_steps, self.preset.registration_rate)
            return locnet

        def measure(locnet):
            aligned = self.aligned(ALIGNED_BY, self.left_out)
            return displacement_figures(locnet, self._points, aligned, grid, self.coarse, 1)

        return self._model("tibia-stn-masked", settings, train, measure, self._aligning_cards(ALIGNED_BY))

    def refined_stn(self):
        """Beside step 3: a LocNet on coarse images, taught by millimetres on the mean bone, asked again and again.

        Its training images lie as the mean bone does: virtual people's by corresponding vertices, real people's by the
        STN. They are hidden as fractures and the ends of scans hide a bone.
        """
        preset = self.preset
        grid, coarse = preset.refined_images, preset.refined_grid
        settings = {
            "kind": "locnet",
            "grid": grid_settings(coarse),
            "images_grid": grid_settings(grid),
            "widths": list(preset.refined_widths),
            "repeated": preset.refined_repeated,
            "times": TIMES,
        }

        def train():
            aligned = self._on_mean("refined", 0)
            locnet = seeded(lambda: build(settings), self.seed, "stn-refined").to(self.device)

            def loss_of(generator, done):
                chosen = self._chosen(len(aligned), generator, preset.refined_batch)
                whole = torch.rand((len(chosen), 1, 1, 1, 1), generator=generator, device=self.device) < UNMASKED_SHARE
                hidden = random_masks(grid, len(chosen), generator) & ~whole
                images = aligned[chosen].float()
                return displacement_loss(locnet, self._points, images, hidden, grid, coarse, generator)

            self._optimise("stn-refined", locnet, loss_of, preset.refined_steps, preset.refined_rate)
            return locnet

        def measure(locnet):
            aligned = self._on_mean("left-out-refined", 1)
            return displacement_figures(locnet, self._points, aligned, grid, coarse, TIMES)

        aligned_by = [self._prior.card] if self.cases is None else self._aligning_cards(ALIGNED_BY)
        return self._model("tibia-stn-refined", settings, train, measure, aligned_by)

    def _on_mean(self, name, left_out):
        """(N, 1, K, J, I) float16 images that lie as the mean bone does, on the refined LocNet's grid."""
        grid = self.preset.refined_images
        images = self._images(name, left_out, grid, on_mean)
        if self.cases is None:
            return images
        matrix = self._matrices(ALIGNED_BY, self.left_out if left_out else self.raw)
        return sample(images, matrix, grid).half()

    @cached_property
    def _prior(self):
        return load_prior(TIBIA_PRIOR, "tibia")

    @cached_property
    def _points(self):
        """(V, 3) float32 points of the mean bone, mm."""
        chosen = spread_over(len(self._prior.mean), POINTS)
        return torch.as_tensor(self._prior.mean[chosen], dtype=torch.float32, device=self.device)

    def pca(self, row, images):
        """Principal components of a row's aligned images."""
        settings = {"kind": "pca", "grid": grid_settings(self.preset.grid)}

        def train():
            return Pca.fitted(images, self.preset.components)

        def measure(network):
            return reconstruction_figures(network, self.aligned(row, self.left_out))

        network = self._model(f"tibia-pca-{row}", settings, train, measure, self._aligning_cards(row))
        self.surroundings.report(f"pca-{row}", 1.0)
        return network

    def autoencoder(self, kind, row, images, target=None):
        """Step 2, or step 3 where a target is named.

        Args:
            kind: "vae" or "vqvae".
            row: of the table, by which the images are registered.
            images: (N, 1, K, J, I) aligned images.
            target: None: nothing is masked; or one of `TARGETS`.
        """
        preset, stage = self.preset, f"{kind}-{row}" if target is None else f"{kind}-masked-{target}"
        settings = {"kind": kind, "grid": grid_settings(preset.grid), "widths": list(preset.widths)}
        if kind == "vae":
            settings["latent"] = preset.latent
        else:
            settings |= {"latent": preset.codeword, "codewords": preset.codewords}

        def hidden(count, generator):
            return None if target is None else random_blocks(preset.grid, count, generator)

        def train():
            network = seeded(lambda: build(settings), self.seed, stage).to(
                self.device, memory_format=torch.channels_last_3d
            )

            def loss_of(generator, done):
                batch = images[self._chosen(len(images), generator)].float()
                masks = hidden(len(batch), generator)
                if kind == "vae":
                    return vae_loss(network, batch, masks, target, generator)
                return vqvae_loss(network, batch, masks, target, generator, done)

            self._optimise(stage, network, loss_of, preset.autoencoder_steps, preset.autoencoder_rate)
            return network

        def measure(network):
            aligned = self.aligned(row, self.left_out)
            return reconstruction_figures(network, aligned, hidden(len(aligned), self._generator("measured")))

        return self._model(f"tibia-{stage}", settings, train, measure, self._aligning_cards(row))

    def aligned(self, row, images=None):
        """(N, 1, K, J, I) float16 images as a row of the table registers them.

        Args:
            row: of `ROWS`.
            images: raw ones; those of the training people when None.
        """
        images = self.raw if images is None else images
        if row == "none":
            return images
        matrix, aligned = self._matrices(row, images), torch.empty_like(images)
        for chosen in torch.arange(len(images)).split(IMAGES_AT_ONCE):
            aligned[chosen] = sample(images[chosen], matrix[chosen], self.preset.grid).half()
        return aligned

    def _matrices(self, row, images):
        """(N, 4, 4) by which a row registers raw images."""
        network = self.direct() if row == "direct" else self.stn()
        return self._found(row, network, images)

    def _found(self, row, network, images):
        grid = self.preset.grid
        if row == "stn":
            parts = [averaged(part.float(), grid, self.coarse) for part in images.split(IMAGES_AT_ONCE)]
            found = [located(network.locnet, *part, self.coarse) for part in parts]
            return torch.cat(found).clone()  # not of the inference mode any more
        if images is self.raw:
            return affine_matrix(network.parameters_of_images.detach())
        prototype = network.prototype.detach()
        coarse_prototype = functional.avg_pool3d(prototype, prototype.shape[2] // self.coarse.shape_kji[0])
        shown, between = averaged(images.float(), grid, self.coarse)
        return affine_matrix(
            register_directly(coarse_prototype, shown, between, self.coarse, DIRECT_STEPS, DIRECT_RATE)
        )

    def _train_direct(self):
        shown, grid = self.shown
        network = DirectRegistration(len(self.raw), self._mean_image())

        def loss_of(generator, done):
            chosen = self._chosen(len(self.raw), generator)
            return direct_loss(network, shown[chosen], chosen, grid, self.coarse)

        self._optimise("direct", network, loss_of, self.preset.registration_steps, self.preset.registration_rate)
        return network

    def _train_stn(self):
        shown, grid = self.shown
        locnet = {"kind": "locnet", "grid": grid_settings(self.coarse), "widths": list(self.preset.locnet_widths)}
        start = self._mean_image()
        network = PrototypeRegistration(seeded(lambda: build(locnet), self.seed, "stn").to(self.device), start)

        def loss_of(generator, done):
            chosen = self._chosen(len(self.raw), generator)
            return stn_loss(network, shown[chosen], grid, self.coarse, generator)

        self._optimise("stn", network, loss_of, self.preset.registration_steps, self.preset.registration_rate)
        return network

    def _mean_image(self):
        """(1, 1, K, J, I) mean of the raw images on the registrations' grid, where prototypes begin."""
        return functional.avg_pool3d(self.raw.float().mean(0, keepdim=True), self.preset.registration_factor)

    def _prototype_model(self, row, settings, train):
        """A registration whose prototype, trained on the coarse grid, is then trained on the fine one."""

        def trained():
            network = train()
            network.prototype = nn.Parameter(self._fine_prototype(row, network))
            return network

        def measure(network):
            matrix = self._found(row, network, self.left_out)
            return prototype_figures(sample(self.left_out, matrix, self.preset.grid), network.prototype.detach())

        return self._model(f"tibia-{row}", settings, trained, measure)

    def _fine_prototype(self, row, network):
        matrix = self._found(row, network, self.raw)
        shape = self.preset.grid.shape_kji
        start = functional.interpolate(network.prototype.detach(), shape, mode="trilinear", align_corners=False)
        fine = nn.ParameterList([nn.Parameter(start)])

        def loss_of(generator, done):
            chosen = self._chosen(len(self.raw), generator)
            images = sample(self.raw[chosen], matrix[chosen], self.preset.grid)
            return d_ssim(images, fine[0]).mean(), {}

        self._optimise(f"{row}-prototype", fine, loss_of, self.preset.prototype_steps, self.preset.prototype_rate)
        return fine[0].detach()

    def _generator(self, name):
        return torch.Generator(self.device).manual_seed(stage_seed(self.seed, name))

    def _chosen(self, count, generator, batch=None):
        return torch.randint(count, (batch or self.preset.batch,), generator=generator, device=self.device)

    def _optimise(self, stage, module, loss_of, steps, rate):
        began = time.monotonic()
        optimise(stage, module, loss_of, Schedule(steps, rate, self.seed), self.surroundings)
        self.figures[stage] = {"steps": steps, "seconds_of_this_run": round(time.monotonic() - began, 1)}

    def _model(self, model_id, settings, train, measure, trained_with=()):
        """The model of an id: what an earlier stage or run has left behind, or else trained, measured and saved.

        Args:
            model_id: its folder's name.
            settings: see `networkmodels.build`.
            train: function that returns the network.
            measure: function of the network that returns its figures on left-out people.
            trained_with: cards of the models without which it says nothing.
        """
        folder = self.folder / MODELS / model_id
        if not (folder / "model.json").exists():
            network = train()
            if isinstance(network, nn.Module):
                network.eval()
            stage = model_id.removeprefix("tibia-")
            figures = {
                "training": self.figures.get(stage, {}),
                "people": len(self._sources(0)),
                "seed": self.seed,
                "left_out_people": {"people": len(self._sources(1)), **measure(network)},
            }
            companions = {card["id"]: card["sha256"] for card in trained_with}
            save_network(folder, network, settings, figures, self._people(), companions)
        return load_network(Model(model_id, folder, self._card(model_id.removeprefix("tibia-"))), self.device)

    def _card(self, stage):
        """The card of a model that has been trained."""
        return json.loads((self.folder / MODELS / f"tibia-{stage}" / "model.json").read_text(encoding="utf-8"))

    def _aligning_cards(self, row):
        """Cards of the registration that a row of the table has, trained now where it was not yet."""
        if row == "none":
            return []
        self.direct() if row == "direct" else self.stn()
        return [self._card(row)]

    def _people(self):
        """Whom a model was learned from: `networkmodels.VIRTUAL` or `REAL`, with the numbers filled in."""
        if self.cases is None:
            return virtual_people(self.preset.people)
        cases = self.cases[0]
        return real_people(len(cases), len({case.subject for case in cases}))


def open_log(folder):
    """A function (name, value, step) that writes a TensorBoard log, or one that does nothing where it is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("The package tensorboard is missing: no log of the losses is written.", flush=True)
        return lambda name, value, step: None
    return SummaryWriter(str(folder)).add_scalar


def dry_run(folder):
    """Print what is wrong with each case of a folder of real CTs.

    Raises:
        InputError: something is wrong with one or more of them.
    """
    found = check_cases(find_cases(folder), lambda fraction: None)
    for name, sentence in found:
        print(f"{name}: {sentence or 'can be learned from.'}", flush=True)
    wrong = sum(bool(sentence) for _, sentence in found)
    if wrong:
        raise InputError(f"{wrong} of {len(found)} cases cannot be learned from: correct them or take them away.")


def check_resume(folder, settings, resume):
    """Make sure that an output folder is new, or holds the beginning of the very same training.

    Args:
        folder: Path.
        settings: dict that makes the training what it is.
        resume: whether to go on with what the folder holds.

    Raises:
        InputError: it holds a training and `resume` is False, or another training than that.
    """
    path = folder / SETTINGS
    text = json.dumps(settings, indent=2) + "\n"
    if path.exists():
        if not resume:
            raise InputError(f"The output folder {folder} already holds a training: add --resume or name another one.")
        if path.read_text(encoding="utf-8") != text:
            raise InputError(f"The training in {folder} was started with other settings: name another folder.")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The output folder {folder} cannot be made ({error.strerror}): name another one.") from error
    write_atomically(path, text.encode())


def add_arguments(parser):
    """Declare the arguments of `bonerecon train tibia`."""
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for models, checkpoints and the log")
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default=DEFAULT_PRESET,
        help="size and length of all trainings (default: cpu)",
    )
    parser.add_argument("--device", default="auto", help="torch device (default: a GPU where there is one)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of each training (default: the preset's)")
    parser.add_argument("--people", type=int, metavar="N", help="number of virtual people (default: the preset's)")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after this time; --resume goes on from there")
    parser.add_argument("--resume", action="store_true", help="go on with the training that the output folder holds")
    parser.add_argument("--cts", type=Path, metavar="FOLDER", help="real CTs: FOLDER/<subject>_<L|R>/ct.*, tibia.*")
    parser.add_argument("--dry-run", action="store_true", help="only check the folder of real CTs")


def run(arguments):
    """Run `bonerecon train tibia`."""
    if arguments.dry_run:
        if arguments.cts is None:
            raise InputError("--dry-run checks a folder of real CTs: name it with --cts.")
        return dry_run(arguments.cts)
    if arguments.output is None:
        raise InputError("Where the models go is missing: name a folder with --output.")
    deadline = float("inf") if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    device = chosen_device(arguments.device)
    preset = chosen_preset(arguments.preset, arguments.steps, arguments.people)
    cases = None
    if arguments.cts is not None:
        cases = split(find_cases(arguments.cts))
        check_number(cases[0])
    settings = {
        "preset": asdict(preset),
        "seed": arguments.seed,
        "device": device,
        "cases": None if cases is None else [case.folder.name for case in cases[0]],
        "version": VERSION,
    }
    check_resume(arguments.output, settings, arguments.resume)
    surroundings = Surroundings(
        arguments.output / CHECKPOINTS, Progress(STAGES).report, open_log(arguments.output / LOG), deadline
    )
    training = TibiaTraining(arguments.output, preset, arguments.seed, device, surroundings, cases)
    try:
        training.run(arguments.only)
    except Interrupted as interrupted:
        print(f"The time is over during {interrupted}: run the same command with --resume to go on.")
        return None
    result = {"version": VERSION, "settings": settings, "trainings": training.figures}
    write_atomically(arguments.output / RESULT, (json.dumps(result, indent=2) + "\n").encode())
    return None

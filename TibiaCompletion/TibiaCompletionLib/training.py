"""`bonerecon train tibia`: steps 1 to 3 of the masked tibia completion paper, for every row and column of its table 1.

Training people are made on the training device, so that a plain clone with torch and MONAI is enough; a folder of real
CTs may take their place. A training that was cut short goes on with --resume to the very same weights.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.jobs import RESULT, Progress
from BoneReconstructionLib.modelzoo import Model
from BoneReconstructionLib.tensorfiles import write_atomically
from BoneReconstructionLib.version import VERSION
from BoneReconstructionLib.virtualpatients import VirtualPatients
from TibiaCompletionLib.autoencoders.pca import Pca
from TibiaCompletionLib.autoencoders.training import TARGETS, vae_loss, vqvae_loss
from TibiaCompletionLib.imagelosses import d_ssim
from TibiaCompletionLib.networkmodels import build, grid_settings, load_network, save_network
from TibiaCompletionLib.randommasks import random_masks
from TibiaCompletionLib.registration.network import DirectRegistration, PrototypeRegistration, affine_matrix, sample
from TibiaCompletionLib.registration.training import direct_loss, masked_stn_loss, stn_loss
from TibiaCompletionLib.shaperegression.network import PriorVertices
from TibiaCompletionLib.shaperegression.training import PeoplePool, random_input, shape_loss
from TibiaCompletionLib.standardgrid import STANDARD_GRID, StandardGrid
from TibiaCompletionLib.trainingcts import check_cases, find_cases, real_images, split
from TibiaCompletionLib.trainingdata import training_seeds, virtual_images
from TibiaCompletionLib.trainingloop import Interrupted, Schedule, Surroundings, optimise, seeded


@dataclass(frozen=True)
class Preset:
    """How large and how long.

    Attributes:
        grid: of the images that the autoencoders see.
        registration_factor: how much coarser the grid is on which registrations are trained.
        people: number of virtual people.
        batch: images in a step.
        locnet_widths, widths: channels of LocNet and autoencoders after each halving.
        latent: channels of the VAE's code.
        codewords, codeword: number and channels of the VQ-VAE's codewords.
        components: of the PCA.
        registration_steps, prototype_steps, autoencoder_steps: of each training.
        shape_factor: how much coarser the grid is on which the shape regressor sees masks.
        shape_widths: its channels after each halving.
        shape_batch, shape_steps: of its training.
        registration_rate, prototype_rate, autoencoder_rate: AdamW's highest learning rates. The paper's 1e-5 is for
            500 to 1000 epochs.
    """

    grid: StandardGrid
    registration_factor: int
    people: int
    batch: int
    locnet_widths: tuple[int, ...]
    widths: tuple[int, ...]
    latent: int
    codewords: int
    codeword: int
    components: int
    registration_steps: int
    prototype_steps: int
    autoencoder_steps: int
    shape_factor: int
    shape_widths: tuple[int, ...]
    shape_batch: int
    shape_steps: int
    registration_rate: float = 1e-3
    prototype_rate: float = 5e-3
    autoencoder_rate: float = 1e-3
    shape_rate: float = 1e-3


PRESETS = {
    "gpu": Preset(
        grid=STANDARD_GRID,
        registration_factor=2,
        people=442,
        batch=8,
        locnet_widths=(16, 32, 64, 64, 64),
        widths=(16, 32, 64, 128),
        latent=8,
        codewords=1024,
        codeword=16,
        components=32,
        registration_steps=2500,
        prototype_steps=150,
        autoencoder_steps=800,
        shape_factor=2,
        shape_widths=(16, 32, 64, 96, 128),
        shape_batch=32,
        shape_steps=4000,
    ),
    "cpu": Preset(
        grid=STANDARD_GRID.coarser(4),
        registration_factor=1,
        people=96,
        batch=4,
        locnet_widths=(8, 16, 32, 32),
        widths=(16, 32, 64),
        latent=8,
        codewords=128,
        codeword=8,
        components=32,
        registration_steps=800,
        prototype_steps=60,
        autoencoder_steps=500,
        shape_factor=1,
        shape_widths=(8, 16, 32, 64),
        shape_batch=8,
        shape_steps=2000,
    ),
}
DEFAULT_PRESET = "cpu"
ROWS = ("none", "direct", "stn")
KINDS = ("vae", "vqvae")
# Step 3 learns from images aligned by the STN.
ALIGNED_BY = "stn"
IMAGES_AT_ONCE = 16
STAGES = {
    "people": 3,
    "shape": 4,
    "direct": 3,
    "direct-prototype": 1,
    "stn": 3,
    "stn-prototype": 1,
    "stn-masked": 3,
    **{f"pca-{row}": 0.2 for row in ROWS},
    **{f"{kind}-{row}": 3 for row in ROWS for kind in KINDS},
    **{f"{kind}-masked-{target}": 3 for target in TARGETS for kind in KINDS},
}
SETTINGS = "settings.json"
LOG = "log"
CHECKPOINTS = "checkpoints"
MODELS = "models"


class TibiaTraining:
    """All trainings of the table; each is done once and leaves a model folder behind.

    Args:
        folder: where models, checkpoints and logs go.
        preset: `Preset`.
        seed: of everything random.
        device: torch device.
        surroundings: `trainingloop.Surroundings`.
        cases: `trainingcts.CtCase`s to learn from; virtual people when None.
    """

    def __init__(self, folder, preset, seed, device, surroundings, cases=None):
        self.folder, self.preset, self.seed, self.device = Path(folder), preset, seed, torch.device(device)
        self.surroundings, self.cases = surroundings, cases
        self.coarse = preset.grid.coarser(preset.registration_factor)
        self.figures = {}

    @cached_property
    def raw(self):
        """(N, 1, K, J, I) float16 raw images of the training people."""

        def report(fraction):
            self.surroundings.report("people", fraction)

        if self.cases is not None:
            return real_images(self.cases, self.preset.grid, self.device, report)
        return virtual_images(training_seeds(self.preset.people), self.preset.grid, self.device, report)

    @cached_property
    def raw_coarse(self):
        """The raw images on the registrations' grid, float16."""
        return torch.cat([self._coarse(part) for part in self.raw.split(IMAGES_AT_ONCE)])

    def _coarse(self, images):
        return functional.avg_pool3d(images.float(), self.preset.registration_factor).half()

    def run(self):
        """Everything: the shape regressor, which needs no images, then the paper's methods in its order.

        Raises:
            Interrupted: the time is over.
        """
        if self.cases is None:
            self.shape()
        self.direct()
        self.stn()
        self.masked_stn()
        for row in ROWS:
            images = self.aligned(row)
            self.pca(row, images)
            for kind in KINDS:
                self.autoencoder(kind, row, images)
            if row == ALIGNED_BY:
                for target in TARGETS:
                    for kind in KINDS:
                        self.autoencoder(kind, f"masked-{target}", images, target)

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
                masks, places = pool.at(round(done * preset.shape_steps))
                chosen = torch.randint(preset.people, (preset.shape_batch,), generator=generator, device=self.device)
                return shape_loss(regressor, vertices, *random_input(masks[chosen], places[chosen], grid, generator))

            self._optimise("shape", regressor, loss_of, preset.shape_steps, preset.shape_rate)
            return regressor

        return self._model("tibia-shape", settings, train)

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
            "prototype_grid": grid_settings(self.preset.grid),
            "widths": list(self.preset.locnet_widths),
        }
        return self._prototype_model("stn", settings, self._train_stn)

    def masked_stn(self):
        """Step 3: the mask-robust LocNet, by masked and moved images that the STN has aligned."""
        settings = {"kind": "locnet", "grid": grid_settings(self.coarse), "widths": list(self.preset.locnet_widths)}

        def train():
            aligned = torch.cat([self._coarse(part) for part in self.aligned(ALIGNED_BY).split(IMAGES_AT_ONCE)])
            locnet = seeded(lambda: build(settings), self.seed, "stn-masked").to(self.device)

            def loss_of(generator, done):
                images = aligned[self._chosen(len(aligned), generator)]
                hidden = random_masks(self.coarse, len(images), generator)
                return masked_stn_loss(locnet, images, hidden, self.coarse, generator)

            self._optimise("stn-masked", locnet, loss_of, self.preset.registration_steps, self.preset.registration_rate)
            return locnet

        return self._model("tibia-stn-masked", settings, train)

    def pca(self, row, images):
        """Principal components of a row's aligned images."""
        settings = {"kind": "pca", "grid": grid_settings(self.preset.grid)}
        network = self._model(f"tibia-pca-{row}", settings, lambda: Pca.fitted(images, self.preset.components))
        self.surroundings.report(f"pca-{row}", 1.0)
        return network

    def autoencoder(self, kind, name, images, target=None):
        """Step 2, or step 3 where a target is named.

        Args:
            kind: "vae" or "vqvae".
            name: of the row.
            images: (N, 1, K, J, I) aligned images.
            target: None: nothing is masked; or one of `TARGETS`.
        """
        preset, stage = self.preset, f"{kind}-{name}"
        settings = {"kind": kind, "grid": grid_settings(preset.grid), "widths": list(preset.widths)}
        if kind == "vae":
            settings["latent"] = preset.latent
        else:
            settings |= {"latent": preset.codeword, "codewords": preset.codewords}

        def train():
            network = seeded(lambda: build(settings), self.seed, stage).to(
                self.device, memory_format=torch.channels_last_3d
            )

            def loss_of(generator, done):
                batch = images[self._chosen(len(images), generator)].float()
                hidden = None if target is None else random_masks(preset.grid, len(batch), generator)
                if kind == "vae":
                    return vae_loss(network, batch, hidden, target, generator)
                return vqvae_loss(network, batch, hidden, target, generator, done)

            self._optimise(stage, network, loss_of, preset.autoencoder_steps, preset.autoencoder_rate)
            return network

        return self._model(f"tibia-{stage}", settings, train)

    def aligned(self, row):
        """(N, 1, K, J, I) float16 training images as a row of the table registers them."""
        if row == "none":
            return self.raw
        network = self.direct() if row == "direct" else self.stn()
        aligned = torch.empty_like(self.raw)
        parameters = self._parameters(row, network)
        for chosen in torch.arange(len(self.raw)).split(IMAGES_AT_ONCE):
            aligned[chosen] = sample(self.raw[chosen], affine_matrix(parameters[chosen]), self.preset.grid).half()
        return aligned

    @torch.no_grad()
    def _parameters(self, row, network):
        """(N, 12) affine parameters of all training images."""
        if row == "direct":
            return network.parameters_of_images
        return torch.cat([network.locnet(part.float()) for part in self.raw_coarse.split(IMAGES_AT_ONCE)])

    def _train_direct(self):
        network = DirectRegistration(len(self.raw), self.raw_coarse.float().mean(0, keepdim=True))

        def loss_of(generator, done):
            chosen = self._chosen(len(self.raw), generator)
            return direct_loss(network, self.raw_coarse[chosen], chosen, self.coarse)

        self._optimise("direct", network, loss_of, self.preset.registration_steps, self.preset.registration_rate)
        return network

    def _train_stn(self):
        locnet = {"kind": "locnet", "grid": grid_settings(self.coarse), "widths": list(self.preset.locnet_widths)}
        start = self.raw_coarse.float().mean(0, keepdim=True)
        network = PrototypeRegistration(seeded(lambda: build(locnet), self.seed, "stn").to(self.device), start)

        def loss_of(generator, done):
            images = self.raw_coarse[self._chosen(len(self.raw), generator)]
            return stn_loss(network, images, self.coarse, generator)

        self._optimise("stn", network, loss_of, self.preset.registration_steps, self.preset.registration_rate)
        return network

    def _prototype_model(self, row, settings, train):
        """A registration whose prototype, trained on the coarse grid, is then trained on the fine one."""

        def trained():
            network = train()
            network.prototype = nn.Parameter(self._fine_prototype(row, network))
            return network

        return self._model(f"tibia-{row}", settings, trained)

    def _fine_prototype(self, row, network):
        parameters = self._parameters(row, network)
        shape = self.preset.grid.shape_kji
        start = functional.interpolate(network.prototype.detach(), shape, mode="trilinear", align_corners=False)
        fine = nn.ParameterList([nn.Parameter(start)])

        def loss_of(generator, done):
            chosen = self._chosen(len(self.raw), generator)
            images = sample(self.raw[chosen], affine_matrix(parameters[chosen]), self.preset.grid)
            return d_ssim(images, fine[0]).mean(), {}

        self._optimise(f"{row}-prototype", fine, loss_of, self.preset.prototype_steps, self.preset.prototype_rate)
        return fine[0].detach()

    def _chosen(self, count, generator):
        return torch.randint(count, (self.preset.batch,), generator=generator, device=self.device)

    def _optimise(self, stage, module, loss_of, steps, rate):
        began = time.monotonic()
        optimise(stage, module, loss_of, Schedule(steps, rate, self.seed), self.surroundings)
        self.figures[stage] = {"steps": steps, "seconds": round(time.monotonic() - began, 1)}

    def _model(self, model_id, settings, train):
        """The model of an id: what an earlier stage or run has left behind, or else trained and saved."""
        folder = self.folder / MODELS / model_id
        if not (folder / "model.json").exists():
            network = train()
            if isinstance(network, nn.Module):
                network.eval()
            stage = model_id.removeprefix("tibia-")
            people = self.preset.people if self.cases is None else len(self.cases)
            figures = {"training": self.figures.get(stage, {}), "people": people, "seed": self.seed}
            save_network(folder, network, settings, figures, self._training_data())
        card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        return load_network(Model(model_id, folder, card), self.device)

    def _training_data(self):
        if self.cases is not None:
            return (
                f"{len(self.cases)} real CTs with tibia masks of {len({case.subject for case in self.cases})} people."
            )
        return f"{self.preset.people} virtual people drawn from the shape prior tibia-prior, seeded; no real CT."


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
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    preset = chosen_preset(arguments.preset, arguments.steps, arguments.people)
    cases = None if arguments.cts is None else split(find_cases(arguments.cts))[0]
    settings = {
        "preset": asdict(preset),
        "seed": arguments.seed,
        "cases": None if cases is None else [case.folder.name for case in cases],
        "version": VERSION,
    }
    check_resume(arguments.output, settings, arguments.resume)
    surroundings = Surroundings(
        arguments.output / CHECKPOINTS, Progress(STAGES).report, open_log(arguments.output / LOG), deadline
    )
    training = TibiaTraining(arguments.output, preset, arguments.seed, device, surroundings, cases)
    try:
        training.run()
    except Interrupted as interrupted:
        print(f"The time is over during {interrupted}: run the same command with --resume to go on.")
        return None
    result = {"version": VERSION, "settings": settings, "device": str(device), "trainings": training.figures}
    write_atomically(arguments.output / RESULT, (json.dumps(result, indent=2) + "\n").encode())
    return None


def chosen_preset(name, steps, people):
    """A preset with other numbers of steps and people where they are given.

    Raises:
        InputError: a number is too small.
    """
    preset = PRESETS[name]
    if steps is not None:
        if steps < 1:
            raise InputError(f"--steps {steps}: at least 1 step is needed.")
        preset = replace(
            preset,
            registration_steps=steps,
            prototype_steps=steps,
            autoencoder_steps=steps,
            shape_steps=steps,
        )
    if people is not None:
        if people < preset.batch:
            raise InputError(f"--people {people}: at least {preset.batch} are needed.")
        preset = replace(preset, people=people)
    return preset

"""How large and how long the trainings of `bonerecon train tibia` are: for a GPU and for two CPU cores."""

from dataclasses import dataclass, replace

from BoneReconstructionLib.errors import InputError
from TibiaCompletionLib.standardgrid import STANDARD_GRID, StandardGrid


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
        refined_images, refined_grid: grids of the images that the refined LocNet is taught with, and that it sees.
        refined_widths, refined_repeated: its channels, see `LocNet`.
        refined_batch, refined_steps: of its training.
        shape_factor: how much coarser the grid is on which the shape regressor sees masks.
        shape_widths: its channels after each halving.
        shape_batch, shape_steps: of its training.
        registration_rate, prototype_rate, autoencoder_rate, refined_rate, shape_rate: AdamW's highest learning rates.
            The paper's 1e-5 is for 500 to 1000 epochs.
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
    refined_images: StandardGrid
    refined_grid: StandardGrid
    refined_widths: tuple[int, ...]
    refined_repeated: int
    refined_batch: int
    refined_steps: int
    shape_factor: int
    shape_widths: tuple[int, ...]
    shape_batch: int
    shape_steps: int
    registration_rate: float = 1e-3
    prototype_rate: float = 5e-3
    autoencoder_rate: float = 1e-3
    refined_rate: float = 2e-3
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
        refined_images=STANDARD_GRID.coarser(2),
        refined_grid=STANDARD_GRID.coarser(4),
        refined_widths=(16, 32, 64, 64),
        refined_repeated=2,
        refined_batch=8,
        refined_steps=20000,
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
        refined_images=StandardGrid((128, 32, 32), (4.0, 4.0, 3.5)),
        refined_grid=StandardGrid((64, 16, 16), (8.0, 8.0, 7.0)),
        refined_widths=(16, 32, 64),
        refined_repeated=1,
        refined_batch=4,
        refined_steps=1500,
        shape_factor=1,
        shape_widths=(8, 16, 32, 64),
        shape_batch=8,
        shape_steps=2000,
    ),
}
DEFAULT_PRESET = "cpu"


def chosen_preset(name, steps, people):
    """A preset with other numbers of steps and people where they are given.

    Raises:
        InputError: a number is too small.
    """
    preset = PRESETS[name]
    if steps is not None:
        if steps < 1:
            raise InputError(f"--steps {steps}: at least 1 step is needed.")
        kinds = ("registration_steps", "prototype_steps", "autoencoder_steps", "refined_steps", "shape_steps")
        preset = replace(preset, **dict.fromkeys(kinds, steps))
    if people is not None:
        if people < preset.batch:
            raise InputError(f"--people {people}: at least {preset.batch} are needed.")
        preset = replace(preset, people=people)
    return preset

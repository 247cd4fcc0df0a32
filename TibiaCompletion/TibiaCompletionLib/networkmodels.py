"""Trained networks as models of the model zoo: their cards, saving in half precision, loading by kind."""

import numpy as np
import torch

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.modelzoo import find_model, save_model
from BoneReconstructionLib.version import VERSION
from TibiaCompletionLib.autoencoders.pca import Pca
from TibiaCompletionLib.registration.network import DirectRegistration, LocNet, PrototypeRegistration
from TibiaCompletionLib.shaperegression.network import ShapeRegressor
from TibiaCompletionLib.standardgrid import StandardGrid

LICENCE = "MPL-2.0"
FRAME = (
    "Standard tibia frame: right side, +x patient right, +y anterior, +z proximal, origin at the mean bone's centroid; "
    "left bones are mirrored in x on the way in and back on the way out."
)
IMAGES = "CT of one tibia alone, HU from -200 to 1800 mapped to [0, 1], zero outside the bone and where it is masked"
MASKS = "masks of the visible tibia, of its neighbouring bones and of what is hidden, 0 or 1"
OUTPUTS = {
    "locnet": "12 affine parameters (angles, translation, log-scales, shears) that lay the image on the prototype",
    "stn": "12 affine parameters as of a LocNet, and the prototype image",
    "direct": "the prototype image, to which images are registered one by one",
    "vae": "the healthy bone's image on the same grid",
    "vqvae": "the healthy bone's image on the same grid",
    "pca": "the healthy bone's image on the same grid",
    "shape": "pose and weights of the shape prior tibia-prior",
}
ATTRIBUTION = "Learned from virtual people of the shape prior tibia-prior; its card says whose bones that is from."
LIMITS = [
    "Not for clinical use.",
    "Learned from virtual people drawn from a shape prior of 28 people: no deformity, implant or earlier fracture.",
    "What is predicted behind a mask is a typical bone that fits what is visible, not a measurement.",
]
# Averages that only training needs; in half precision they would overflow.
TRAINING_ONLY = ("quantizer.ema_",)


def grid_settings(grid):
    """A `StandardGrid` as it stands in a card."""
    return {"shape_kji": list(grid.shape_kji), "spacing_ijk_mm": list(grid.spacing_ijk)}


def grid_of(settings):
    """The `StandardGrid` of a card's settings."""
    return StandardGrid(tuple(settings["shape_kji"]), tuple(settings["spacing_ijk_mm"]))


def build(settings):
    """The untrained network of a card's settings.

    Args:
        settings: {"kind": key of `OUTPUTS`, "grid": see `grid_settings`, and the network's own arguments}.
    """
    kind, grid = settings["kind"], grid_of(settings["grid"])
    if kind == "locnet":
        return LocNet(grid, settings["widths"])
    if kind in ("stn", "direct"):
        image = torch.zeros(1, 1, *grid_of(settings["prototype_grid"]).shape_kji)
        if kind == "direct":
            return DirectRegistration(settings["images"], image)
        return PrototypeRegistration(LocNet(grid, settings["widths"]), image)
    if kind == "shape":
        return ShapeRegressor(grid, settings["widths"], settings["modes"], settings["kernels"])
    from TibiaCompletionLib.autoencoders.network import Vae, VqVae

    if kind == "vae":
        return Vae(settings["widths"], settings["latent"])
    return VqVae(settings["widths"], settings["latent"], settings["codewords"])


def save_network(folder, network, settings, figures, training_data):
    """Write a network or `Pca` as a model folder.

    Args:
        folder: its name is the model's id.
        network: torch module, or `Pca`.
        settings: see `build`.
        figures: measured, for the card.
        training_data: one sentence.

    Raises:
        InputError: the folder cannot be written.
    """
    description = {"frame": FRAME, "units": "1, places in mm"}
    card = {
        "id": folder.name,
        "version": VERSION,
        "licence": LICENCE,
        "attribution": ATTRIBUTION,
        "training_data": training_data,
        "input": {"description": MASKS if settings["kind"] == "shape" else IMAGES, **description},
        "output": {"description": OUTPUTS[settings["kind"]], **description},
        "figures": figures,
        "limits": LIMITS,
        "network": settings,
    }
    tensors = network.tensors() if isinstance(network, Pca) else network.state_dict()
    kept = {name: value for name, value in tensors.items() if not name.startswith(TRAINING_ONLY)}
    save_model(folder, card, {name: value.cpu().numpy().astype(np.float16) for name, value in kept.items()})


def load_network(model, device="cpu"):
    """The network of a model, ready for inference.

    Args:
        model: `modelzoo.Model`, or the id to find it by.
        device: torch device.

    Returns:
        torch module in evaluation mode, or `Pca`.

    Raises:
        InputError: no such model, or its weights are missing, altered or of another network.
        ModuleNotFoundError: the network needs MONAI, which is not installed.
    """
    model = find_model(model) if isinstance(model, str) else model
    tensors = {name: torch.from_numpy(a.astype(np.float32)).to(device) for name, a in model.tensors().items()}
    if model.card["network"]["kind"] == "pca":
        return Pca.from_tensors(tensors)
    network = build(model.card["network"]).to(device)
    only_trained = {name: value for name, value in network.state_dict().items() if name.startswith(TRAINING_ONLY)}
    try:
        network.load_state_dict({**only_trained, **tensors})
    except RuntimeError as error:
        raise InputError(
            f"The weights of {model.card['id']} are not those of the network in its card: copy its folder anew."
        ) from error
    return network.eval()

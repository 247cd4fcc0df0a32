"""Trained networks as models of the model zoo: their cards, saving in half precision, loading by kind."""

from dataclasses import dataclass

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
LIMITS = [
    "Not for clinical use.",
    "What is predicted behind a mask is a typical bone that fits what is visible, not a measurement.",
]
# Averages that only training needs; in half precision they would overflow.
TRAINING_ONLY = ("quantizer.ema_",)


@dataclass(frozen=True)
class Origin:
    """Whom a model was learned from, for its card.

    Attributes:
        training_data, licence, attribution: as in the card.
        limit: sentence about what such people do not show.
    """

    training_data: str
    licence: str
    attribution: str
    limit: str


def virtual_people(count):
    """`Origin` of a model that was learned from virtual people alone."""
    return Origin(
        f"{count} virtual people drawn from the shape prior tibia-prior, seeded; no real CT.",
        LICENCE,
        "Learned from virtual people of the shape prior tibia-prior; its card says whose bones that is from.",
        "Learned from virtual people drawn from a shape prior of 28 people: no deformity, implant or earlier fracture.",
    )


def real_people(cases, people):
    """`Origin` of a model that was learned from real CTs: whoever trains it has to say whose they are."""
    return Origin(
        f"{cases} real CTs with tibia masks, of {people} people.",
        "Not stated: that under which the CTs may be learned from.",
        "Learned from real CTs whose source is not stated: whoever trained the model has to add it here.",
        f"Learned from {people} people: it knows no bone unlike theirs.",
    )


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
        return LocNet(grid, settings["widths"], settings.get("repeated", 0))
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


def save_network(folder, network, settings, figures, origin, trained_with):
    """Write a network or `Pca` as a model folder.

    Args:
        folder: its name is the model's id.
        network: torch module, or `Pca`.
        settings: see `build`.
        figures: measured, for the card.
        origin: `Origin`.
        trained_with: {id: sha256 of the weights} of the models that the network answers in terms of.

    Raises:
        InputError: the folder cannot be written.
    """
    description = {"frame": FRAME, "units": "1, places in mm"}
    card = {
        "id": folder.name,
        "version": VERSION,
        "licence": origin.licence,
        "attribution": origin.attribution,
        "training_data": origin.training_data,
        "input": {"description": MASKS if settings["kind"] == "shape" else IMAGES, **description},
        "output": {"description": OUTPUTS[settings["kind"]], **description},
        "figures": figures,
        "limits": [*LIMITS, origin.limit],
        "network": settings,
        "trained_with": trained_with,
    }
    tensors = network.tensors() if isinstance(network, Pca) else network.state_dict()
    kept = {name: value for name, value in tensors.items() if not name.startswith(TRAINING_ONLY)}
    save_model(folder, card, {name: value.cpu().numpy().astype(np.float16) for name, value in kept.items()})


def find_network(model_id):
    """The `modelzoo.Model` of a network, beside which the very models are found that it was trained with.

    Raises:
        InputError: there is no such model, or one of those is missing or another one.
    """
    model = find_model(model_id)
    for other, sha256 in model.card["trained_with"].items():
        if find_model(other).card["sha256"] != sha256:
            raise InputError(
                f"The model {model_id} was trained with another {other} than the one that is found: copy the models "
                "of one training together, or train it anew."
            )
    return model


def load_network(model, device="cpu"):
    """The network of a model, ready for inference.

    Args:
        model: `modelzoo.Model`, see `find_network`.
        device: torch device.

    Returns:
        torch module in evaluation mode, or `Pca`.

    Raises:
        InputError: the weights are missing, altered or of another network.
        ModuleNotFoundError: the network needs MONAI, which is not installed.
    """
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

"""The autoencoders: losses by hand, the codebook's averages, principal components, and surfaces out of images."""

import math

import numpy as np
import pytest
import torch
from phantoms import Ball, frame
from tibiae import leg

from BoneReconstructionLib.distances import SurfaceLocator, signed_distances
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import side_to_right
from BoneReconstructionLib.modelzoo import MODELS_VARIABLE
from BoneReconstructionLib.surfaces import transformed
from BoneReconstructionLib.volumes import crop
from TibiaCompletionLib.autoencoders.inference import complete_by_vae, deviations_mm, reconstructed
from TibiaCompletionLib.autoencoders.network import COMMITMENT, DECAY, Vae, VqVae
from TibiaCompletionLib.autoencoders.pca import Pca
from TibiaCompletionLib.autoencoders.training import BALANCE_WEIGHT, KL_WEIGHT, vae_loss, vqvae_loss
from TibiaCompletionLib.case import make_case
from TibiaCompletionLib.evaluation.table1 import ROW_TITLES, Cell, crossings, image_figures, surface_rmsd, table
from TibiaCompletionLib.imagelosses import kl_divergence, mean_squared_error
from TibiaCompletionLib.networkmodels import build, grid_settings, save_network, virtual_people
from TibiaCompletionLib.registration.inference import image_surface
from TibiaCompletionLib.standardgrid import CENTRE_MM, STANDARD_GRID, StandardGrid
from TibiaCompletionLib.trainingdata import SURFACE_LEVEL
from TibiaCompletionLib.trainingloop import seeded

GRID = StandardGrid((16, 8, 8), (2.0, 2.0, 3.0))
WIDTHS = (4, 8)


def vae():
    return seeded(lambda: Vae(WIDTHS, 2), 0, "vae")


def vqvae(codewords=4):
    return seeded(lambda: VqVae(WIDTHS, 2, codewords), 0, "vqvae")


def images(count=2, seed=1):
    return torch.rand((count, 1, *GRID.shape_kji), generator=torch.Generator().manual_seed(seed))


def generator():
    return torch.Generator().manual_seed(9)


def lower_half():
    hidden = torch.zeros((2, 1, *GRID.shape_kji), dtype=torch.bool)
    hidden[:, :, :8] = True
    return hidden


# ---- losses ----


def test_the_divergence_is_that_of_two_normal_distributions_and_never_negative():
    mean, log_variance = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, math.log(4.0)]])
    assert float(kl_divergence(mean, log_variance)) == pytest.approx(0.5 * 1 + 0.5 * (4 - 1 - math.log(4)))
    assert float(kl_divergence(torch.zeros(1, 5), torch.zeros(1, 5))) == 0


def test_squared_error_counts_visible_voxels_alone_where_asked():
    a, b = torch.zeros(1, 1, 1, 1, 4), torch.tensor([1.0, 2.0, 0.0, 0.0]).view(1, 1, 1, 1, 4)
    visible = torch.tensor([True, False, True, False]).view(1, 1, 1, 1, 4)
    assert float(mean_squared_error(a, b)) == pytest.approx(5 / 4)
    assert float(mean_squared_error(a, b, visible)) == pytest.approx(1 / 2)


class HandMadeVae:
    """Encodes to mean 1 and variance 4 in two numbers; decodes to 0.25 everywhere."""

    def encode(self, shown):
        self.shown = shown
        return torch.ones(len(shown), 2), torch.full((len(shown), 2), math.log(4.0))

    def decode(self, code):
        self.code = code
        return torch.full((len(code), 1, *GRID.shape_kji), 0.25)


@pytest.mark.parametrize("target, error", [("visible", 0.5**2), ("whole", (0.5**2 + 0.15**2) / 2)])
def test_the_vae_loss_adds_the_divergence_and_sees_the_gap_only_with_the_loss_on_the_whole_bone(target, error):
    model, hidden = HandMadeVae(), lower_half()
    wanted = torch.full((2, 1, *GRID.shape_kji), 0.75)
    wanted[hidden] = 0.4
    loss, _ = vae_loss(model, wanted, hidden, target, generator())
    divergence = 2 * (0.5 * 1 + 0.5 * (4 - 1 - math.log(4)))
    assert float(loss) == pytest.approx(error + KL_WEIGHT * divergence / math.prod(GRID.shape_kji), rel=1e-5)
    assert float(loss) > error  # the divergence is a cost, not a gain
    assert model.shown[hidden].abs().max() == 0 and model.shown[~hidden].min() == 0.75
    noise = torch.randn((2, 2), generator=generator())
    torch.testing.assert_close(model.code, 1 + 2 * noise)


def test_without_a_mask_the_vae_sees_everything():
    model, wanted = HandMadeVae(), images()
    vae_loss(model, wanted, None, None, generator())
    assert model.shown is wanted


def test_the_vqvae_loss_is_error_commitment_and_balance():
    model, batch = vqvae(), images()
    vectors = model.encoder(batch).detach()
    flat = vectors.movedim(1, -1).reshape(-1, 2)
    apart = ((flat[:, None] - model.quantizer.embedding.weight[None]) ** 2).sum(-1)
    commitment = COMMITMENT * ((flat - model.quantizer.embedding.weight[apart.argmin(1)]) ** 2).mean()
    share = torch.softmax(-apart / (0.1 * apart.mean()), 1).mean(0)
    imbalance = (math.log(4) + (share * share.log()).sum()).detach()
    model.eval()
    error = mean_squared_error(model(batch), batch).detach()
    late, values = vqvae_loss(model, batch, None, None, generator(), 0.9)
    assert values["revived"] == 0
    assert float(late.detach()) == pytest.approx(float(error + 1.0 * commitment + BALANCE_WEIGHT * imbalance), rel=1e-4)
    first, _ = vqvae_loss(model, batch, None, None, generator(), 0.0)
    assert float((late - first).detach()) == pytest.approx(float(0.5 * commitment), rel=1e-3)


# ---- the codebook ----


def test_codewords_follow_their_vectors_by_moving_averages():
    model = vqvae(codewords=2).train()
    quantizer = model.quantizer
    start = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    quantizer.embedding.weight.data.copy_(start)
    quantizer.ema_w.copy_(start)
    quantizer.ema_cluster_size.fill_(1.0)
    vectors = torch.tensor([[1.0, 0.0], [3.0, 0.0], [10.0, 14.0]]).T.reshape(1, 2, 3, 1, 1)
    quantizer(vectors)
    sizes = DECAY * 1 + (1 - DECAY) * torch.tensor([2.0, 1.0])
    sums = DECAY * start + (1 - DECAY) * torch.tensor([[4.0, 0.0], [10.0, 14.0]])
    torch.testing.assert_close(quantizer.embedding.weight, sums / sizes[:, None], rtol=1e-4, atol=1e-4)


def test_codewords_stand_still_outside_training():
    model = vqvae().eval()
    before = model.quantizer.embedding.weight.clone()
    model(images())
    torch.testing.assert_close(model.quantizer.embedding.weight, before, rtol=0, atol=0)


def test_unused_codewords_are_given_to_vectors_of_the_batch():
    model = vqvae(codewords=3)
    model.quantizer.ema_cluster_size.copy_(torch.tensor([5.0, 0.0, 0.01]))
    before = model.quantizer.embedding.weight.clone()
    vectors = torch.arange(8.0).reshape(1, 2, 4, 1, 1)
    assert model.revive(vectors, generator()) == 2
    torch.testing.assert_close(model.quantizer.embedding.weight[0], before[0])
    rows = vectors.reshape(2, 4).T
    for codeword in model.quantizer.embedding.weight[1:]:
        assert (rows == codeword).all(1).any()


def test_the_balance_is_zero_when_all_codewords_are_used_alike():
    model = vqvae(codewords=2)
    model.quantizer.embedding.weight.data.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    even = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).T.reshape(1, 2, 2, 1, 1)
    one_sided = torch.tensor([[0.0, 0.0], [0.1, 0.0]]).T.reshape(1, 2, 2, 1, 1)
    assert float(model.imbalance(even)) == pytest.approx(0, abs=1e-6)
    assert float(model.imbalance(one_sided)) == pytest.approx(math.log(2), rel=0.01)


# ---- networks ----


@pytest.mark.parametrize("make", [vae, vqvae])
def test_autoencoders_return_images_of_the_size_they_are_given_and_learn(make):
    model, batch = make(), images()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    model.train()
    losses = []
    for _ in range(20):
        loss_of = vae_loss if make is vae else lambda *given: vqvae_loss(*given, 0.5)
        loss, _ = loss_of(model, batch, None, None, generator())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert min(losses[-3:]) < 0.7 * losses[0]
    decoded = reconstructed(model.eval(), batch)
    assert decoded.shape == batch.shape and decoded.min() >= 0 and decoded.max() <= 1


def test_the_latent_code_is_spatial():
    mean, log_variance = vae().encode(images())
    assert mean.shape == log_variance.shape == (2, 2, 4, 2, 2)


# ---- principal components ----


def test_components_reproduce_images_of_their_span_exactly():
    generator_ = torch.Generator().manual_seed(4)
    bases = torch.rand((4, 1, *GRID.shape_kji), generator=generator_)
    weights = torch.rand((9, 3), generator=generator_)
    span = bases[0] + torch.einsum("nr,rcijk->ncijk", weights, bases[1:])
    pca = Pca.fitted(span, 3)
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(3), atol=1e-4, rtol=0)
    unseen = (bases[0] + 0.4 * bases[1] - 0.2 * bases[3])[None]
    torch.testing.assert_close(pca.reconstructed(unseen), unseen, atol=1e-4, rtol=0)
    half = torch.ones_like(unseen, dtype=torch.bool)
    half[:, :, ::2] = False
    torch.testing.assert_close(pca.reconstructed(unseen * half, half), unseen, atol=1e-2, rtol=0)


def test_fewer_components_are_the_best_of_their_number():
    batch = images(12, seed=6)
    pca = Pca.fitted(batch, 8)
    flat = (batch - batch.mean(0)).flatten(1).numpy()
    left = np.linalg.norm(np.linalg.svd(flat, compute_uv=False)[5:])
    found = torch.linalg.norm(pca.truncated(5).reconstructed(batch) - batch)
    assert float(found) == pytest.approx(left, rel=1e-3)


def test_components_come_back_from_their_tensors():
    pca = Pca.fitted(images(6), 4)
    again = Pca.from_tensors({name: tensor.clone() for name, tensor in pca.tensors().items()})
    torch.testing.assert_close(again.reconstructed(images()), pca.reconstructed(images()))


# ---- completion ----


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_surface_comes_back_to_the_patient_by_the_inverse_affine(side, tmp_path, monkeypatch):
    """With an autoencoder that changes nothing, the completion is the visible bone, whatever the LocNet says."""
    grid = STANDARD_GRID.coarser(2)
    coarse = {"kind": "locnet", "grid": grid_settings(grid.coarser(2)), "widths": [4], "times": 1}
    locnet = build(coarse)
    with torch.no_grad():
        locnet.head[-1].bias.copy_(torch.tensor([0.4, -0.3, 0.5, 0.2, -0.2, 0.3, 0.4, 0.2, -0.3, 0.1, 0.1, -0.2]))
    network = {"kind": "vae", "grid": grid_settings(grid), "widths": [4], "latent": 2}
    save_network(tmp_path / "tibia-stn-masked", locnet, coarse, {"people": 1}, virtual_people(1), {})
    save_network(tmp_path / "tibia-vae-masked-whole", build(network), network, {"people": 1}, virtual_people(1), {})
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path))
    monkeypatch.setattr("TibiaCompletionLib.autoencoders.inference.reconstructed", lambda autoencoder, images: images)
    one = leg(side, frame((1.2, 1.1, 1.6), (6, -7, 15), "j"), gap_mm=(100.0, 400.0))
    case = make_case(one.tibia, one.gap, lambda lower, upper: crop(one.ct, lower, upper))
    completion = complete_by_vae(case, side, side_to_right(side) @ one.ras_from_standard, lambda fraction: None)
    predicted = transformed(completion.surface, side_to_right(side))
    away = one.heights(predicted.vertices) < 92
    apart = SurfaceLocator(one.truth).signed(predicted.vertices[away])
    # The surface lies where the image nearly vanishes, less than a voxel outside.
    assert 0 < np.median(apart) < 2.0 and np.std(apart) < 0.9
    assert completion.model["id"] == "tibia-vae-masked-whole" and completion.rms_mm < 2.5


# ---- surfaces out of images and the table ----


def ball_image(radius, grid, ramp=3.0):
    """(K, J, I) image of a ball around the grid's centre that crosses the surface level at the radius."""
    k, j, i = np.indices(grid.shape_kji)
    points = np.stack([i, j, k], -1) @ grid.ijk_to_standard[:3, :3].T + grid.ijk_to_standard[:3, 3]
    distance = Ball(CENTRE_MM, radius).signed_distance(points)
    return np.clip(SURFACE_LEVEL - distance / ramp, -1, 1).astype(np.float32)


BALLS = StandardGrid((30, 36, 40), (1.1, 1.3, 1.7))


def test_the_surface_of_an_image_lies_in_the_standard_frame():
    surface = image_surface(ball_image(14.0, BALLS), BALLS)
    off = np.linalg.norm(surface.vertices - CENTRE_MM, axis=1) - 14.0
    assert np.abs(off).mean() < 0.15
    assert signed_distances(np.array([CENTRE_MM]), surface)[0] < -13


def test_an_image_without_bone_is_refused():
    with pytest.raises(InputError, match="no bone"):
        image_surface(np.zeros(BALLS.shape_kji, dtype=np.float32), BALLS)


def test_the_distance_of_two_images_surfaces_is_that_of_two_balls():
    a, b, nothing = (
        crossings(torch.from_numpy(image)[None, None], BALLS)
        for image in (ball_image(12.0, BALLS), ball_image(13.5, BALLS), np.zeros(BALLS.shape_kji, dtype=np.float32))
    )
    reach = max(BALLS.spacing_ijk)
    assert surface_rmsd(a, b, reach) == pytest.approx(1.5, abs=0.06)
    assert surface_rmsd(a, a, reach) == 0
    assert math.isnan(surface_rmsd(a, nothing, reach))


def test_deviations_of_decodings_are_millimetres_along_the_normal():
    """Decodings whose ball differs in radius by a normal number of millimetres have just that deviation."""

    class Balls:
        def encode(self, aligned):
            return torch.tensor([[13.0]]), torch.tensor([[2 * math.log(0.4)]])

        def decode(self, code):
            return torch.from_numpy(ball_image(float(code), BALLS, ramp=9.0))[None, None]

    surface = image_surface(ball_image(13.0, BALLS, ramp=9.0), BALLS)
    found = deviations_mm(Balls(), torch.zeros(1), surface, BALLS)
    drawn_from = torch.Generator().manual_seed(0)
    drawn = [13 + 0.4 * float(torch.randn((1, 1), generator=drawn_from)) for _ in range(8)]
    assert np.median(found) == pytest.approx(np.std(drawn, ddof=1), rel=0.15)


def test_the_table_has_every_row_the_papers_figures_and_no_interval_over_a_handful(monkeypatch):
    monkeypatch.setattr("TibiaCompletionLib.evaluation.table1._grid", lambda: GRID)
    image = images(1)[:, :, :15, :7, :7]
    grid = StandardGrid((15, 7, 7), GRID.spacing_ijk)
    monkeypatch.setattr("TibiaCompletionLib.evaluation.table1.SSIM_WINDOWS", (3, 7))
    figures = image_figures(image, 0.9 * image, crossings(0.9 * image, grid), grid)
    figures |= {"d_ssim_11": 0.01, "d_ssim_15": 0.01}
    assert figures["psnr_db"] == pytest.approx(-20 * math.log10(figures["rmse"]))
    few, many = (table([Cell("stn", "vae", str(n), figures) for n in range(count)]) for count in (3, 12))
    assert all(title in few for title in ROW_TITLES.values())
    assert "[0.27]" in few and "1 [0.27]" in few and "±" not in few and "±" in many

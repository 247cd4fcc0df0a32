"""The spatial transformer: what the sampler does to images and gradients, and the losses of registration."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.imagemetrics import d_ssim as numpy_d_ssim
from TibiaCompletionLib.imagelosses import d_ssim
from TibiaCompletionLib.registration.inference import register
from TibiaCompletionLib.registration.network import (
    GAIN,
    PARAMETERS,
    UNITS,
    DirectRegistration,
    LocNet,
    PrototypeRegistration,
    affine_matrix,
    averaged,
    random_similarities,
    sample,
)
from TibiaCompletionLib.registration.training import (
    AUGMENTATION,
    GAUGE_WEIGHT,
    NEAR_MM,
    PARAMETER_WEIGHT,
    POSES,
    SIZE_WEIGHT,
    SMALLEST_SHARE,
    direct_loss,
    displacement_loss,
    masked_stn_loss,
    register_directly,
    stn_loss,
)
from TibiaCompletionLib.standardgrid import CENTRE_MM, STANDARD_GRID, StandardGrid
from TibiaCompletionLib.trainingloop import seeded

GRID = StandardGrid((14, 10, 8), (2.0, 1.5, 3.0))
OTHER_GRID = StandardGrid((9, 12, 10), (1.7, 1.1, 4.0))


def blob(grid, shift=(0.0, 0.0, 0.0), size=1.0):
    """(1, 1, K, J, I) smooth image without symmetry, from 0 to about 1, in double precision."""
    k, j, i = np.indices(grid.shape_kji)
    points = np.stack([i, j, k], -1) @ grid.ijk_to_standard[:3, :3].T + grid.ijk_to_standard[:3, 3]
    places = (points - CENTRE_MM - shift) / size
    image = np.exp(-((places / (5, 4, 9)) ** 2).sum(-1)) + 0.4 * np.exp(-(((places - (3, 2, 8)) / 4) ** 2).sum(-1))
    return torch.from_numpy(image)[None, None]


def parameters(*values):
    return torch.tensor([[*values, *[0.0] * (PARAMETERS - len(values))]], dtype=torch.float64)


def test_the_standard_grid_lies_around_its_centre_and_holds_the_papers_number_of_voxels():
    assert STANDARD_GRID.shape_kji == (256, 128, 128)
    corners = np.array([[0, 0, 0, 1], [127, 127, 255, 1]]) @ STANDARD_GRID.ijk_to_standard.T
    np.testing.assert_allclose(corners[:, :3].mean(0), CENTRE_MM)
    coarse = STANDARD_GRID.coarser(4)
    assert coarse.shape_kji == (64, 32, 32) and coarse.spacing_ijk == (4.0, 4.0, 7.0)


# ---- parameters ----


def test_no_parameters_are_the_identity():
    np.testing.assert_allclose(affine_matrix(torch.zeros(2, PARAMETERS))[1], np.eye(4), atol=1e-7)


def test_parameters_turn_scale_shear_and_move_about_the_centre():
    values = np.array([0.5, -0.4, 0.9, 0.2, -0.6, 0.4, 1.0, 0.5, -0.5, 0.3, -0.2, 0.1])
    angles, translation, log_scale, shear = np.split(values * UNITS, 4)
    linear = Rotation.from_euler("xyz", angles).as_matrix() @ np.diag(np.exp(log_scale))
    linear = linear @ [[1, shear[0], shear[1]], [0, 1, shear[2]], [0, 0, 1]]
    matrix = affine_matrix(torch.from_numpy(values)[None])[0].numpy()
    np.testing.assert_allclose(matrix[:3, :3], linear, atol=1e-12)
    np.testing.assert_allclose(matrix[:3] @ [*CENTRE_MM, 1], CENTRE_MM + translation, atol=1e-12)


def test_random_similarities_stay_within_the_papers_ranges_and_reach_them():
    drawn = random_similarities(4000, torch.Generator().manual_seed(1))
    matrix = affine_matrix(drawn.double()).numpy()
    scale = np.cbrt(np.linalg.det(matrix[:, :3, :3]))
    assert 0.9 < scale.min() < 0.902 and 1.098 < scale.max() < 1.1
    assert abs(np.mean(scale) - 1) < 0.003  # uniform in the scale itself
    np.testing.assert_allclose(
        matrix[:, :3, :3].transpose(0, 2, 1) @ matrix[:, :3, :3],
        scale[:, None, None] ** 2 * np.eye(3) * np.ones((4000, 1, 1)),
        atol=1e-5,
    )
    shift = matrix[:, :3, :3] @ CENTRE_MM + matrix[:, :3, 3] - CENTRE_MM
    assert 24.9 < np.abs(shift).max() <= 25.0001
    assert 0.99 < drawn[:, :3].abs().max() <= 1


# ---- the sampler ----


def test_the_sampler_leaves_an_image_as_it_is_at_the_identity():
    image = blob(GRID)
    torch.testing.assert_close(sample(image, torch.eye(4, dtype=torch.float64)[None], GRID), image)


def test_the_sampler_agrees_with_scipy_on_another_grid():
    image, matrix = (
        blob(GRID),
        affine_matrix(parameters(0.5, -0.4, 0.9, 0.1, -0.1, 0.1, 1.0, -1.0, 0.5, 0.5, 0.2, -0.4)),
    )
    found = sample(image, matrix, GRID, OTHER_GRID)[0, 0].numpy()
    k, j, i = np.indices(OTHER_GRID.shape_kji)
    ijk_to_ijk = np.linalg.inv(GRID.ijk_to_standard) @ matrix[0].numpy() @ OTHER_GRID.ijk_to_standard
    places = np.stack([i, j, k], -1) @ ijk_to_ijk[:3, :3].T + ijk_to_ijk[:3, 3]
    padded = np.pad(image[0, 0].numpy(), 1)  # zero outside, linear over the last voxel
    wanted = map_coordinates(padded, np.moveaxis(places, -1, 0)[::-1] + 1, order=1, mode="constant")
    assert wanted.max() > 0.5
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_the_sampler_pulls_the_image_back():
    """The output at p is the input at M p: a matrix that moves points by +x shows what lay further along +x."""
    moved = sample(blob(GRID, (4.0, 0.0, 0.0)), affine_matrix(parameters(0, 0, 0, 4.0 / 25)), GRID)
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2), slice(2, -3))
    torch.testing.assert_close(moved[inside], blob(GRID)[inside], atol=0.02, rtol=0)


def test_gradients_of_the_sampler_agree_with_finite_differences():
    small = StandardGrid((4, 3, 5), (2.0, 1.5, 3.0))
    image = torch.rand((1, 1, *small.shape_kji), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    values = parameters(0.21, -0.13, 0.32, 0.011, -0.017, 0.013, 0.31, -0.23, 0.17, 0.11, -0.19, 0.07)

    def sampled(images, affine):
        return sample(images, affine_matrix(affine), small)

    assert torch.autograd.gradcheck(sampled, (image.requires_grad_(), values.requires_grad_()), eps=1e-7, atol=1e-5)


# ---- losses ----


@pytest.mark.parametrize("window", [3, 7])
def test_d_ssim_in_torch_is_that_of_the_metrics(window):
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.rand((2, 1, 9, 8, 7), generator=generator) for _ in range(2))
    wanted = [numpy_d_ssim(x[0].numpy(), y[0].numpy(), window) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(d_ssim(a, b, window), wanted, atol=2e-5)


def test_the_direct_loss_is_dissimilarity_and_the_gauge():
    image = blob(GRID).float()
    registration = DirectRegistration(3, blob(GRID, (3.0, 0, 0)).float())
    with torch.no_grad():
        registration.shares[2, 4] = 0.5 / GAIN
        registration.shares[1, 7] = 0.2 / GAIN
    loss, _ = direct_loss(registration, image, torch.tensor([0]), GRID, GRID)
    assert float(loss.detach()) == pytest.approx(float(d_ssim(image, registration.prototype.detach())), rel=1e-4)
    pair, values = direct_loss(registration, image.expand(2, -1, -1, -1, -1), torch.tensor([0, 2]), GRID, GRID)
    assert float(values["gauge"]) == pytest.approx(0.25**2)  # of the mean, half of one image's 0.5
    assert float(pair.detach() - values["d_ssim"]) == pytest.approx(GAUGE_WEIGHT * 0.25**2, rel=1e-4)
    larger, values = direct_loss(registration, image, torch.tensor([1]), GRID, GRID)
    price = (GAUGE_WEIGHT + SIZE_WEIGHT) * 0.2**2
    assert float(larger.detach() - values["d_ssim"]) == pytest.approx(price, rel=1e-3)


def test_the_refined_loss_is_what_is_left_of_the_way_in_millimetres():
    grid = StandardGrid((20, 16, 16), (8.0, 8.0, 10.0))
    aligned = blob(grid, size=6.0).float()
    hidden = torch.zeros_like(aligned, dtype=torch.bool)
    points = torch.tensor([[10.0, 0.0, 50.0], [-10.0, 5.0, -90.0]])

    def drawn():
        return torch.Generator().manual_seed(5)

    generator = drawn()
    share = (0.2 + 0.8 * torch.rand((POSES, 1), generator=generator)) ** 2
    wanted = random_similarities(POSES, generator, share)
    matrix = affine_matrix(wanted)
    goal = points @ matrix[:, :3, :3].transpose(1, 2) + matrix[:, None, :3, 3]
    away = torch.linalg.norm(goal - points, dim=2).mean(1)
    for locnet, left in ((lambda moved: wanted, 0 * away), (lambda moved: 0 * wanted, away)):
        loss, values = displacement_loss(locnet, points, aligned, hidden, grid, grid, drawn())
        assert float(loss) == pytest.approx(float((left / (away + NEAR_MM)).mean()), rel=1e-4, abs=1e-5)
        assert float(values["left_mm"]) == pytest.approx(float(left.mean()), rel=1e-4, abs=1e-4)
    assert share.min() >= SMALLEST_SHARE and away.min() < 8 and away.max() > 20


def test_the_mask_robust_loss_asks_for_the_very_transform():
    """A LocNet that knows the answer has almost no loss; one that says nothing has that of the parameters."""
    grid = StandardGrid((20, 16, 16), (8.0, 8.0, 10.0))
    aligned = blob(grid, size=6.0).float()
    hidden = torch.zeros_like(aligned, dtype=torch.bool)
    hidden[..., :8, :, :] = True

    def drawn():
        return torch.Generator().manual_seed(5)

    wanted = random_similarities(1, drawn())
    _, knowing = masked_stn_loss(lambda moved: wanted, aligned, hidden, grid, grid, drawn())
    loss, silent = masked_stn_loss(lambda moved: 0 * wanted, aligned, hidden, grid, grid, drawn())
    assert float(knowing["parameters"]) == 0 and float(knowing["d_ssim"]) < 0.5 * float(silent["d_ssim"])
    assert float(silent["parameters"]) == pytest.approx(float((wanted**2).sum()))
    assert float(loss) == pytest.approx(float(silent["d_ssim"]) + PARAMETER_WEIGHT * float(silent["parameters"]))


def test_the_stn_loss_is_dissimilarity_of_the_moved_and_aligned_image():
    """What the LocNet says of the moved image is put on top of the move, and has its own price."""
    image, prototype = blob(GRID).float(), blob(GRID, (2.0, 0, 0)).float()
    away = random_similarities(1, torch.Generator().manual_seed(6), AUGMENTATION)

    shift = -away * torch.tensor([0.0] * 3 + [1.0] * 3 + [0.0] * 6)

    class MovingBack(torch.nn.Module):
        def forward(self, moved):
            torch.testing.assert_close(moved, sample(image, affine_matrix(away), GRID))
            return shift

    registration = PrototypeRegistration(MovingBack(), prototype)
    loss, values = stn_loss(registration, image, GRID, GRID, torch.Generator().manual_seed(6))
    aligned = sample(image, affine_matrix(away) @ affine_matrix(shift), GRID)
    assert float(values["d_ssim"]) == pytest.approx(float(d_ssim(aligned, prototype)), rel=1e-4)
    price = GAUGE_WEIGHT * float((shift**2).sum())
    assert float(loss.detach()) == pytest.approx(float(values["d_ssim"]) + price, rel=1e-4)


# ---- LocNet and direct registration ----


def test_a_new_locnet_predicts_the_identity():
    locnet = seeded(lambda: LocNet(GRID, (4, 8)), 0, "test")
    image = blob(GRID).float()
    aligned, matrix = register(locnet, image, GRID, GRID)
    np.testing.assert_allclose(matrix[0], np.eye(4), atol=1e-6)
    torch.testing.assert_close(aligned, image)


def test_a_locnet_sees_a_coarser_image_of_any_grid():
    locnet = LocNet(GRID.coarser(2), (4,))
    aligned, matrix = register(locnet, blob(GRID).float(), GRID, GRID.coarser(2))
    assert aligned.shape == (1, 1, *GRID.shape_kji) and matrix.shape == (1, 4, 4)


@pytest.mark.parametrize("factors", [(2, 2, 2), (4, 2, 2)])
def test_averages_are_those_of_the_coarse_voxels_and_between_them(factors):
    """At the coarse grid's own places they are the means of its voxels, wherever the grid's axes are coarser."""
    grid = StandardGrid((16, 12, 8), (2.0, 1.5, 3.0))
    shape = tuple(count // factor for count, factor in zip(grid.shape_kji, factors, strict=True))
    spacing = tuple(width * factor for width, factor in zip(grid.spacing_ijk, factors[::-1], strict=True))
    coarse = StandardGrid(shape, spacing)
    image = blob(grid)
    averages, between = averaged(image, grid, coarse)
    assert between.shape_kji == tuple(2 * count - 1 for count in shape)
    np.testing.assert_allclose(between.half_extent_ijk, coarse.half_extent_ijk)
    still = torch.eye(4, dtype=torch.float64)[None]
    wanted = image[0, 0].reshape(shape[0], factors[0], shape[1], factors[1], shape[2], factors[2]).mean((1, 3, 5))
    torch.testing.assert_close(sample(averages, still, between, coarse)[0, 0], wanted)
    same, kept = averaged(image, grid, grid)
    assert same is image and kept == grid


def test_a_locnet_that_is_asked_twice_goes_on_from_where_it_was():
    """Asked about what it has aligned itself, its second answer is applied before the first."""
    answers = iter([parameters(0, 0, 0.5, 0.2).float(), parameters(0.3).float()])
    images = blob(GRID).float()
    seen = []

    def locnet(given):
        seen.append(given)
        return next(answers)

    aligned, matrix = register(locnet, images, GRID, GRID, times=2)
    first, second = (affine_matrix(parameters(*values)) for values in ((0, 0, 0.5, 0.2), (0.3,)))
    torch.testing.assert_close(matrix, first @ second, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen[1], sample(images, first.float(), GRID))
    torch.testing.assert_close(aligned, sample(images, (first @ second).float(), GRID), atol=1e-4, rtol=1e-4)


def test_direct_registration_finds_a_small_shift():
    grid = StandardGrid((16, 12, 12), (2.0, 2.0, 3.0))
    prototype, image = blob(grid).float(), blob(grid, (3.0, -2.0, 4.0)).float()
    found = register_directly(prototype, image, grid, grid, steps=150, learning_rate=0.01)
    shift = affine_matrix(found.double())[0].numpy() @ [*CENTRE_MM, 1]
    np.testing.assert_allclose(shift[:3] - CENTRE_MM, (3.0, -2.0, 4.0), atol=0.8)

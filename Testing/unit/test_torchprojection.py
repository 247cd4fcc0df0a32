"""The differentiable projector: gradients against finite differences, ProST and its inverse."""

import numpy as np
import pytest
import torch
from phantoms import frame
from scipy.ndimage import gaussian_filter
from xrayphantoms import MIDDLE, SOLIDS, VIEWS, analytic_image, solid_volume

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.torchprojection import beam_steps, beam_volume, from_beam_volume, project

SHAPE = (13, 16, 19)


def smooth_volume(channels=None):
    generator = np.random.default_rng(3)
    array = gaussian_filter(generator.normal(size=(channels or 1, *SHAPE)), (0, 2, 2, 2)) + 0.1
    array *= np.prod(
        [np.sin(np.pi * (index + 1) / (size + 1)) for index, size in zip(np.indices(SHAPE), SHAPE)], axis=0
    )
    matrix = frame((3.0, 2.5, 3.5), (9, -14, 21), "j")
    matrix[:3, 3] = MIDDLE - matrix[:3, :3] @ ((np.array(SHAPE[::-1]) - 1) / 2)
    return torch.from_numpy(array if channels else array[0]), torch.from_numpy(matrix)


def motion(parameters):
    """Rigid motion about `MIDDLE` by a rotation vector (rad) and a shift (mm)."""
    x, y, z = parameters[:3]
    zero = torch.zeros((), dtype=parameters.dtype)
    cross = torch.stack([torch.stack([zero, -z, y]), torch.stack([z, zero, -x]), torch.stack([-y, x, zero])])
    rotation = torch.linalg.matrix_exp(cross)
    middle = torch.from_numpy(MIDDLE)
    shift = parameters[3:] + middle - rotation @ middle
    return torch.cat([torch.cat([rotation, shift[:, None]], 1), torch.tensor([[0, 0, 0, 1.0]], dtype=torch.float64)])


@pytest.mark.parametrize("view", ["along i", "between the axes", "tilted detector"])
def test_gradients_to_volume_and_pose_against_finite_differences(view):
    values, ijk_to_ras = smooth_volume()
    geometry = VIEWS[view].resized((7, 8))
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=geometry.shape))

    def loss(values, parameters):
        return (project(values, motion(parameters) @ ijk_to_ras, geometry) * weights).sum()

    start = torch.tensor([0.05, -0.08, 0.03, 1.1, -2.3, 0.7], dtype=torch.float64, requires_grad=True)
    values.requires_grad_()
    to_values, to_pose = torch.autograd.grad(loss(values, start), (values, start))
    with torch.no_grad():
        for index in range(6):
            step = torch.zeros(6, dtype=torch.float64)
            step[index] = 1e-6
            difference = (loss(values, start + step) - loss(values, start - step)) / 2e-6
            assert float(to_pose[index]) == pytest.approx(float(difference), rel=1e-4, abs=1e-4)
        # It is linear in the volume: any direction shows the whole gradient.
        direction = torch.from_numpy(np.random.default_rng(2).normal(size=SHAPE))
        difference = loss(values + direction, start) - loss(values, start)
        assert float((to_values * direction).sum()) == pytest.approx(float(difference), rel=1e-9)


def test_descent_on_the_pose_finds_it_again():
    values, ijk_to_ras = smooth_volume()
    views = [VIEWS["along i"].resized((14, 13)), VIEWS["along j"].resized((13, 14))]
    true = torch.tensor([0.04, -0.05, 0.06, 2.0, -1.5, 2.5], dtype=torch.float64)
    fixed = [project(values, motion(true) @ ijk_to_ras, view) for view in views]
    found = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], max_iter=20, line_search_fn="strong_wolfe")
    scale = torch.tensor([0.02] * 3 + [1.0] * 3, dtype=torch.float64)

    def closure():
        optimizer.zero_grad()
        pose = motion(found * scale) @ ijk_to_ras
        loss = sum(((project(values, pose, view) - image) ** 2).mean() for view, image in zip(views, fixed))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.allclose((found * scale).detach(), true, atol=5e-3)


def test_channels_are_projected_alike():
    values, ijk_to_ras = smooth_volume(channels=3)
    geometry = VIEWS["along k"].resized((12, 15))
    images = project(values, ijk_to_ras, geometry)
    assert images.shape == (3, 12, 15)
    for channel in range(3):
        assert torch.allclose(images[channel], project(values[channel], ijk_to_ras, geometry))


def test_the_type_of_the_volume_is_kept_and_single_precision_is_enough():
    values, ijk_to_ras = smooth_volume()
    geometry = VIEWS["along j"].resized((20, 22))
    exact, single = project(values, ijk_to_ras, geometry), project(values.float(), ijk_to_ras, geometry)
    assert single.dtype == torch.float32 and exact.dtype == torch.float64
    assert (single - exact).abs().max() < 1e-4 * exact.abs().max()


def depths_about(geometry, reach=40.0):
    depth = float(geometry.depths(MIDDLE[None])[0])
    return depth - reach, depth + reach


@pytest.mark.parametrize("view", VIEWS)
def test_prost_sums_to_the_projection(view):
    # Eq. 1 and 2.
    geometry = VIEWS[view]
    volume = solid_volume(SOLIDS["cylinder"], frame((0.8, 0.9, 0.7)))
    values, ijk_to_ras = torch.from_numpy(volume.array), torch.from_numpy(volume.ijk_to_ras)
    depths = depths_about(geometry)
    beam = beam_volume(values[None, None], ijk_to_ras, geometry, depths, 160)
    assert beam.shape == (1, 1, 160, *geometry.shape)
    summed = (beam[0, 0].sum(dim=0) * beam_steps(geometry, depths, 160)).numpy()
    truth = analytic_image(SOLIDS["cylinder"], geometry)
    assert np.abs(summed - project(values, ijk_to_ras, geometry).numpy()).mean() < 0.005 * truth.mean()
    assert summed.sum() == pytest.approx(truth.sum(), rel=0.005)


@pytest.mark.parametrize("view", VIEWS)
def test_inverse_prost_brings_the_volume_back(view):
    # Eq. 3, and the remark below it: V comes back, except outside the cone, where it becomes zero.
    values, ijk_to_ras = smooth_volume()
    geometry = VIEWS[view].resized((100, 100))
    depths = depths_about(geometry)
    batch = torch.stack([values, 2 * values])[:, None]
    beam = beam_volume(batch, ijk_to_ras, geometry, depths, 100)
    back = from_beam_volume(beam, geometry, depths, SHAPE, ijk_to_ras)
    assert back.shape == batch.shape
    voxels = np.stack([*np.indices(SHAPE)[::-1], np.ones(SHAPE)], axis=-1).reshape(-1, 4)
    points = (voxels @ ijk_to_ras.numpy().T)[:, :3]
    ahead = geometry.depths(points)
    inside = geometry.contains(points) & (ahead > depths[0]) & (ahead < depths[1])
    pixels = geometry.project(points)
    outside = (pixels < -1).any(axis=1) | (pixels > 100).any(axis=1)
    assert inside.mean() > 0.3
    truth = values.numpy().ravel()
    assert np.abs(back[0, 0].numpy().ravel() - truth)[inside].mean() < 0.03 * np.abs(truth[inside]).mean()
    assert torch.allclose(back[1], 2 * back[0])
    assert not back[0, 0].numpy().ravel()[outside].any()


def test_nothing_behind_the_source_enters_the_volume():
    geometry = VIEWS["along j"].resized((20, 20))
    behind = np.eye(4)
    behind[:3, 3] = geometry.source - 30 * geometry.normal
    beam = torch.ones(1, 1, 5, 20, 20)
    assert not from_beam_volume(beam, geometry, (1.0, 900.0), (4, 4, 4), torch.from_numpy(behind)).any()


def test_prost_has_gradients_to_volume_and_pose():
    values, ijk_to_ras = smooth_volume()
    geometry = VIEWS["along j"].resized((5, 6))
    depths = depths_about(geometry)
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 1, 9, 5, 6)))

    def loss(parameters):
        pose = motion(parameters) @ ijk_to_ras
        beam = beam_volume(values[None, None], pose, geometry, depths, 9)
        return (beam * weights).sum() + (from_beam_volume(beam, geometry, depths, SHAPE, pose) ** 2).sum()

    start = torch.tensor([0.05, -0.08, 0.03, 1.1, -2.3, 0.7], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(start), start)
    for index in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[index] = 1e-6
        difference = (loss(start.detach() + step) - loss(start.detach() - step)) / 2e-6
        assert float(gradient[index]) == pytest.approx(float(difference), rel=1e-3, abs=1e-4)


def test_a_source_within_the_volume_is_refused():
    values, ijk_to_ras = smooth_volume()
    moved = ijk_to_ras.clone()
    moved[:3, 3] += torch.from_numpy(VIEWS["along i"].source - MIDDLE)
    with pytest.raises(InputError, match="source lies within"):
        project(values, moved, VIEWS["along i"])

"""SimpleITK's affine registration of the mean tibia to a CT with a masked gap: what a completion is compared with."""

import time

import numpy as np
import SimpleITK as sitk

from BoneReconstructionLib.frames import side_to_right, transform_points
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.volumes import Volume, write_volume

BONE_HU, SOFT_TISSUE_HU = 1200, 40
# Shrink factors of the registration's levels and smoothing in voxels, share of the voxels compared.
SHRINKS, SMOOTHINGS, COMPARED, MEAN_MARGIN_MM = (8, 4, 2), (4, 2, 1), 0.02, 20.0
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def registered_mean(prior, side, folder):
    """Lay the mean tibia on a CT outside its mask by SimpleITK's affine registration.

    Args:
        prior: the tibia's `ShapePrior`.
        side: "left" or "right".
        folder: holds ct.nii.gz, of `BONE_HU` and `SOFT_TISSUE_HU`, and fracture.nii.gz; mean.nii.gz is written beside.

    Returns:
        (surface, RAS mm; seconds without reading).
    """
    mean = transformed(Surface(prior.mean, prior.faces), side_to_right(side))
    low = mean.vertices.min(0) - MEAN_MARGIN_MM
    shape = tuple(np.ceil(np.ptp(mean.vertices, axis=0) + 2 * MEAN_MARGIN_MM).astype(int)[::-1])
    ijk_to_ras = np.eye(4)
    ijk_to_ras[:3, 3] = low
    drawn = np.where(voxelize(mean, shape, ijk_to_ras).array, BONE_HU, SOFT_TISSUE_HU).astype(np.int16)
    write_volume(folder / "mean.nii.gz", Volume(drawn, ijk_to_ras))
    ct, moving = (sitk.ReadImage(str(folder / f"{name}.nii.gz"), sitk.sitkFloat32) for name in ("ct", "mean"))
    mask = sitk.ReadImage(str(folder / "fracture.nii.gz")) == 0
    began = time.perf_counter()
    threshold = (BONE_HU + SOFT_TISSUE_HU) / 2
    bones = [sitk.Cast(image > threshold, sitk.sitkFloat32) for image in (ct, moving)]
    # Of what is found: moves points of the CT to the mean tibia, LPS.
    moments = sitk.CenteredTransformInitializerFilter.MOMENTS
    affine = sitk.AffineTransform(sitk.CenteredTransformInitializer(*bones, sitk.AffineTransform(3), moments))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetMetricFixedMask(mask)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(COMPARED, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(learningRate=2.0, minStep=0.005, numberOfIterations=200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(SHRINKS)
    method.SetSmoothingSigmasPerLevel(SMOOTHINGS)
    method.SetInitialTransform(affine, inPlace=True)
    method.Execute(ct, moving)
    seconds = time.perf_counter() - began
    matrix, centre = np.eye(4), np.array(affine.GetCenter())
    matrix[:3, :3] = np.reshape(affine.GetMatrix(), (3, 3))
    matrix[:3, 3] = centre + affine.GetTranslation() - matrix[:3, :3] @ centre
    to_ct = TO_LPS @ np.linalg.inv(matrix) @ TO_LPS
    return Surface(transform_points(to_ct, mean.vertices), mean.faces), seconds

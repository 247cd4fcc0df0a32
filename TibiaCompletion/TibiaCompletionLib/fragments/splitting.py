"""The fragments of a broken bone told apart in its segmentation.

Fragments that are apart are told apart by the gap between them. Where they touch, in a few places or along a crack that
is thinner than a voxel here and there, they hang together by necks that are thin beside the fragments themselves:
shaving the bone severs them. Where a coarse mask of the fracture is known, what it leaves unmasked tells the main
fragments, and bone that still hangs together behind it is parted along the darkest way. What comes out is a proposal,
to be corrected in the Segment Editor.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.meshing import decimate, mask_surface
from BoneReconstructionLib.volumes import Volume, bounding_box, crop

# How deep the bone is shaved, one after the other. A tibia's own thinnest places, at the malleolus, are thicker.
SHAVED_MM = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
# What is left of a fragment then must be this large and this thick below its shaved surface.
CORE_ML, CORE_MM = 0.3, 1.5
# What is smaller is a crumb.
SMALLEST_ML = 1.0
# A crack is darker than the bone beside it, HU, and narrower than this.
CRACK_HU, CRACK_MM, SMOOTHING_VOXELS = 250.0, 2.5, 0.6

# Half the thickness of what a segmentation leaves in the gap between fragments, where the CT's blur fills it.
SPUR_MM = 2.5
# Smaller fragments may be as thin themselves, as those of a joint's surface are.
THIN_ML = 20.0
# Fragments' surfaces are as fine as that: a millimetre between vertices at an end of the bone.
MOST_FACES = 20000


@dataclass(frozen=True, eq=False)
class Split:
    """A bone's fragments.

    Attributes:
        labels: uint8 volume on the bone's grid, the fragments numbered from the largest, 1; crumbs are left out.
        volumes_ml: volume of each fragment.
        crumbs: list of (volume in mL, centre (3,) in RAS mm) of what is too small to be brought anywhere.
    """

    labels: Volume
    volumes_ml: tuple[float, ...]
    crumbs: tuple[tuple[float, np.ndarray], ...]


def split(bone, ct=None, fracture=None):
    """Tell the fragments of a segmented bone apart.

    Args:
        bone: bool volume of the segmented bone, solid, not empty.
        ct: HU on the same grid; shows cracks that the segmentation has closed. None: by the segmentation alone.
        fracture: bool volume on the same grid, the coarse mask of the fracture; None: not known.

    Returns:
        Split.
    """
    lower, upper = bounding_box(bone.array)
    box = crop(bone, lower - 1, upper + 1)
    solid = box.array if ct is None else box.array & ~_cracks(crop(ct, lower - 1, upper + 1))
    spacing = bone.spacing[::-1]
    voxel_ml = np.prod(spacing) / 1000
    depth = ndimage.distance_transform_edt(np.pad(solid, 1), spacing)[1:-1, 1:-1, 1:-1].astype(np.float32)
    parts = np.zeros(box.shape, dtype=np.int32)
    parts[solid] = 1
    for shaved in SHAVED_MM:
        parts = _severed(parts, depth, shaved, voxel_ml)
    if fracture is not None:
        shown = box.array & ~crop(fracture, lower - 1, upper + 1).array
        relief = -depth if ct is None else -_smooth(crop(ct, lower - 1, upper + 1))
        parts = _parted(parts, shown, relief, voxel_ml)
    # Bone that was shaved off belongs to what is nearest of its own piece.
    pieces = ndimage.label(box.array)[0]
    nearest = ndimage.distance_transform_edt(parts == 0, spacing, return_distances=False, return_indices=True)
    place = tuple(nearest)
    labels = np.where(box.array & (pieces == pieces[place]), parts[place], 0)
    return _sorted(labels, box.array, bone, lower, voxel_ml)


def fragment_surface(mask):
    """Closed surface of a fragment, without the thin sheets and spurs that a segmentation leaves between close ones.

    Args:
        mask: bool volume, not empty.

    Returns:
        Surface, RAS mm, of at most `MOST_FACES` triangles.
    """
    lower, upper = bounding_box(mask.array)
    box = crop(mask, lower, upper)
    solid = np.pad(box.array, 1)
    if np.count_nonzero(solid) * np.prod(mask.spacing) / 1000 > THIN_ML:
        core = _distance_to(~solid, mask.spacing) > SPUR_MM
        solid &= _distance_to(core, mask.spacing) <= SPUR_MM
    thick = solid[1:-1, 1:-1, 1:-1]
    return decimate(mask_surface(Volume(thick, box.ijk_to_ras)), MOST_FACES)


def _distance_to(mask, spacing):
    """(K, J, I) distance of each voxel to the nearest one of a mask, mm; not positive inside it. `spacing` is of i, j, k."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(mask.view(np.uint8))
    image.SetSpacing(spacing.tolist())
    return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True))


def _cracks(ct):
    """(K, J, I) bool: dark sheets between brighter bone."""
    smooth = _smooth(ct)
    size = tuple(2 * np.ceil(CRACK_MM / 2 / ct.spacing[::-1]).astype(int) + 1)
    closed = ndimage.minimum_filter(ndimage.maximum_filter(smooth, size), size)
    return closed - smooth > CRACK_HU


def _smooth(ct):
    return ndimage.gaussian_filter(ct.array.astype(np.float32), SMOOTHING_VOXELS, truncate=3.0)


def _severed(parts, depth, shaved, voxel_ml):
    """Parts (K, J, I) with those told apart that fall into several large ones once they are shaved, mm."""
    cores, count = ndimage.label((parts > 0) & (depth > shaved))
    if count < 2:
        return parts
    inside = cores > 0
    owner = np.zeros(count + 1, dtype=parts.dtype)
    owner[cores[inside]] = parts[inside]
    volume = np.bincount(cores[inside], minlength=count + 1) * voxel_ml
    thickest = np.zeros(count + 1, dtype=np.float32)
    np.maximum.at(thickest, cores[inside], depth[inside])
    large = (volume >= CORE_ML) & (thickest >= shaved + CORE_MM)
    large[0] = False
    broken = np.bincount(owner[large], minlength=parts.max() + 1) > 1
    if not broken.any():
        return parts
    kept = np.where(broken[parts], 0, parts)
    number = np.zeros(count + 1, dtype=parts.dtype)
    fresh = np.flatnonzero(large & broken[owner])
    number[fresh] = parts.max() + 1 + np.arange(len(fresh))
    return np.where(inside & (number[cores] > 0), number[cores], kept)


def _parted(parts, shown, relief, voxel_ml):
    """Parts (K, J, I) with those told apart of which several large pieces lie outside the mask, see `split`.

    Args:
        parts: numbered from 1.
        shown: (K, J, I) bool, bone outside the mask.
        relief: (K, J, I), lower inside fragments than between them.
        voxel_ml: volume of a voxel.
    """
    import SimpleITK as sitk

    cores, count = ndimage.label(shown & (parts > 0))
    volume = np.bincount(cores.ravel(), minlength=count + 1) * voxel_ml
    owner = np.zeros(count + 1, dtype=parts.dtype)
    owner[cores[cores > 0]] = parts[cores > 0]
    large = np.flatnonzero((volume >= SMALLEST_ML) & (np.arange(count + 1) > 0))
    several = np.flatnonzero(np.bincount(owner[large], minlength=parts.max() + 1) > 1)
    parts = parts.copy()
    for part in several:
        own = large[owner[large] == part]
        number = np.zeros(count + 1, dtype=np.uint16)
        number[own] = 1 + np.arange(len(own))
        inside = parts == part
        walled = np.where(inside, relief, relief.max() + 1).astype(np.float32)
        flooded = sitk.MorphologicalWatershedFromMarkers(
            sitk.GetImageFromArray(walled), sitk.GetImageFromArray(number[cores] * inside), markWatershedLine=False
        )
        found = sitk.GetArrayViewFromImage(flooded)[inside].astype(parts.dtype)
        parts[inside] = np.where(found > 1, parts.max() + found - 1, part)
    return parts


def _sorted(labels, mask, bone, lower, voxel_ml):
    """`Split` of labels (K, J, I) in a box of the bone's grid that begins at `lower` less one voxel."""
    found, index = np.unique(labels, return_inverse=True)
    volumes = np.bincount(index.ravel()) * voxel_ml
    volumes[found == 0] = 0
    order = np.argsort(-volumes, kind="stable")
    order = order[volumes[order] >= SMALLEST_ML]
    number = np.zeros(len(found), dtype=np.uint8)
    number[order] = np.arange(1, len(order) + 1)
    told = number[index.reshape(labels.shape)]
    whole = np.zeros(bone.shape, dtype=np.uint8)
    start = np.maximum(lower - 1, 0)
    whole[tuple(slice(a, a + n) for a, n in zip(start, told.shape, strict=True))] = told
    rest = ndimage.label(mask & (told == 0))[0]
    crumbs = []
    for crumb, place in enumerate(ndimage.find_objects(rest), start=1):
        inside = np.argwhere(rest[place] == crumb) + [s.start for s in place] + start
        centre = bone.ijk_to_ras[:3, :3] @ inside.mean(0)[::-1] + bone.ijk_to_ras[:3, 3]
        crumbs.append((float(len(inside) * voxel_ml), centre))
    crumbs.sort(key=lambda crumb: -crumb[0])
    return Split(Volume(whole, bone.ijk_to_ras), tuple(float(volumes[n]) for n in order), tuple(crumbs))

"""Volumes with their frame: an array indexed [k, j, i] and the 4x4 matrix from IJK to RAS in millimetres.

Files are LPS; they are turned into RAS here, once, on reading, and back on writing. SimpleITK does the file formats
and the resampling and is imported only by the functions that need it.
"""

import ctypes
import math
import os
import re
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from BoneReconstructionLib.errors import InputError

READABLE_SUFFIXES = (".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd")
WRITABLE_SUFFIXES = (".nrrd", ".nii", ".nii.gz", ".mha")

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Cosine of the angle between two voxel axes. 0.001 (0.06 degrees) is far above what rounding in a file header causes
# and moves the end of a 400 mm bone by less than half a voxel.
SHEAR_TOLERANCE = 1e-3

# Disagreement between the two descriptions of one geometry in a NIfTI header: relative, and in millimetres.
NIFTI_TOLERANCE = 1e-2

# As small as zlib's default on CT and faster; ITK honours it for NRRD and MetaImage only.
COMPRESSION_LEVEL = 2

# Standard deviation of the Gaussian for antialiased masks, in voxels of the coarser of the two grids. It takes the
# steps off a boundary and still keeps sheets and rods that are one voxel thick.
ANTIALIASING_SIGMA = 0.5


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar volume in world coordinates.

    Attributes:
        array: (K, J, I) voxel values; HU for CT, bool or integer labels for masks.
        ijk_to_ras: (4, 4) float64; maps voxel indices (i, j, k, 1) to RAS millimetres of the voxel's centre.
    """

    array: np.ndarray
    ijk_to_ras: np.ndarray

    @property
    def ras_to_ijk(self) -> np.ndarray:
        """(4, 4) float64; maps RAS millimetres to continuous voxel indices (i, j, k)."""
        return np.linalg.inv(self.ijk_to_ras)

    @property
    def spacing(self) -> np.ndarray:
        """(3,) voxel size in mm, in i, j, k order."""
        return np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along k, j, i."""
        return self.array.shape


def check_geometry(ijk_to_ras: np.ndarray) -> None:
    """Refuses a frame that is no box of voxels at right angles.

    Left-handed and oblique frames are fine.

    Args:
        ijk_to_ras: (4, 4) matrix from voxel indices to RAS millimetres.

    Raises:
        InputError: The matrix is not finite, singular, or sheared by more than 0.06 degrees.
    """
    matrix = np.asarray(ijk_to_ras, dtype=float)
    if not np.isfinite(matrix).all():
        raise InputError("The volume's geometry holds values that are not numbers: export the volume again.")
    if matrix.shape != (4, 4) or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise InputError("The volume's geometry is not a 4x4 affine matrix: export the volume again.")
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    if spacing.min() < 1e-6:
        raise InputError("The volume's geometry is singular, a voxel has no size along one axis: export it again.")
    directions = matrix[:3, :3] / spacing
    if abs(np.linalg.det(directions)) < 1e-3:
        raise InputError("The volume's geometry is singular, its axes lie in one plane: export the volume again.")
    if np.abs(directions.T @ directions - np.eye(3)).max() > SHEAR_TOLERANCE:
        raise InputError(
            "The volume's geometry is sheared (its axes are not at right angles): resample it first, in Slicer by "
            "hardening its transform or with the module Resample Scalar/Vector/DWI Volume."
        )


def read_volume(path: str | os.PathLike) -> Volume:
    """Reads a scalar volume, in the type it is stored in.

    Args:
        path: A .nrrd, .nii, .nii.gz, .mha or .mhd file. A .seg.nrrd is read as its label values.

    Returns:
        The volume; its frame is converted from the file's LPS to RAS.

    Raises:
        InputError: The file is missing or unreadable, has several components or time points, is not
            three-dimensional, has a sheared or singular geometry, or does not fit into the memory.
    """
    array, ijk_to_ras, _ = _read(Path(path), several_components=False)
    return Volume(array, ijk_to_ras)


def read_geometry(path: str | os.PathLike) -> tuple[tuple[int, int, int], np.ndarray]:
    """Reads a scalar volume's grid without its voxels.

    Args:
        path: As in `read_volume`.

    Returns:
        ((K, J, I), the (4, 4) IJK-to-RAS).

    Raises:
        InputError: As in `read_volume`, as far as the header tells.
    """
    path = Path(path)
    reader, ijk_to_ras = _read_header(path)
    _check_scalar(reader, path)
    return tuple(reader.GetSize()[2::-1]), ijk_to_ras


def read_mask(name: str | os.PathLike) -> Volume:
    """Reads one bone's mask, named as on the command line.

    Args:
        name: "FILE" (everything that is not zero), "FILE:LABEL" (an integer label) or "FILE:SEGMENT" (a segment's
            name or identifier in a .seg.nrrd file, overlapping segments included). Colons in paths, segment names and
            Windows drives are told apart by what exists on the disk.

    Returns:
        The mask as bool.

    Raises:
        InputError: As in `read_volume`; the label or segment does not occur, or none is named where there are several.
    """
    path, selector = _split_name(str(name))
    array, ijk_to_ras, metadata = _read(path, several_components=True)
    segments = _segments(metadata)
    if segments:
        return Volume(_segment_mask(array, segments, selector, path), ijk_to_ras)
    if array.ndim == 4:
        raise InputError(f"{path.name} has {array.shape[3]} components per voxel: a mask needs one.")
    return Volume(_label_mask(array, selector, path), ijk_to_ras)


def read_masks(name: str | os.PathLike) -> dict[str, Volume]:
    """Reads the masks of several pieces of bone out of one file.

    Args:
        name: As for `read_mask`. A file of several segments or labels gives one mask for each; FILE:LABEL and
            FILE:SEGMENT give one.

    Returns:
        {name of the segment, or "Label N": bool mask}, in the file's order.

    Raises:
        InputError: As in `read_mask`; two segments have one name.
    """
    path, selector = _split_name(str(name))
    if selector is not None:
        return {selector: read_mask(name)}
    array, ijk_to_ras, metadata = _read(path, several_components=True)
    segments = _segments(metadata)
    if not segments:
        if array.ndim == 4:
            raise InputError(f"{path.name} has {array.shape[3]} components per voxel: a mask needs one.")
        labels = [label for label in np.unique(array) if label != 0]
        return {f"Label {label:g}": Volume(array == label, ijk_to_ras) for label in labels}
    names = [segment.name for segment in segments]
    if len(set(names)) < len(names):
        raise InputError(f"{path.name} holds segments of the same name ({', '.join(names)}): rename them.")
    return {
        segment.name: Volume(_segment_mask(array, segments, segment.name, path), ijk_to_ras) for segment in segments
    }


def write_volume(path: str | os.PathLike, volume: Volume) -> None:
    """Writes a volume, compressed where the format allows; a file of that name is replaced only when all is written.

    Args:
        path: A .nrrd, .nii, .nii.gz or .mha file in an existing folder.
        volume: bool is written as uint8 0 and 1.

    Raises:
        InputError: Another ending, a folder that is missing or read-only, or a sheared or singular geometry.
    """
    import SimpleITK as sitk

    path = Path(path)
    suffix = _suffix(path, WRITABLE_SUFFIXES)
    check_geometry(volume.ijk_to_ras)
    image = _to_image(volume)
    temporary = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(temporary))
    writer.SetUseCompression(suffix != ".nii")
    writer.SetCompressionLevel(COMPRESSION_LEVEL)
    try:
        writer.Execute(image)
        os.replace(temporary, path)
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{path} cannot be written: check that its folder exists, is writable and not full."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def resample(
    volume: Volume,
    shape_kji: tuple[int, int, int],
    ijk_to_ras: np.ndarray,
    interpolation: str = "linear",
    fill: float = 0,
) -> Volume:
    """Samples a volume on another grid.

    Args:
        volume: The volume to sample. Integers stay integers: linear interpolation rounds to the nearest.
        shape_kji: Number of voxels of the new grid.
        ijk_to_ras: (4, 4) frame of the new grid; may be oblique and left-handed.
        interpolation: "linear", "nearest", or "antialiased" for bool masks: the mask is smoothed by a Gaussian of half
            a voxel of the coarser grid along each of its axes, interpolated linearly and cut at one half, so that the
            boundary lies between voxels rather than on them.
        fill: Value beyond the volume.

    Returns:
        The new volume, of the same type. On the same grid it shares the volume's array.

    Raises:
        InputError: One of the two frames is sheared or singular.
    """
    check_geometry(volume.ijk_to_ras)
    check_geometry(ijk_to_ras)
    ijk_to_ras = np.array(ijk_to_ras, dtype=float)
    shape_kji = tuple(int(size) for size in shape_kji)
    if volume.shape == shape_kji and np.allclose(volume.ijk_to_ras, ijk_to_ras, rtol=0, atol=1e-6):
        return Volume(volume.array, ijk_to_ras)
    if interpolation == "antialiased":
        if volume.array.dtype != bool:
            raise TypeError("antialiased resampling is for bool masks")
        smoothed = _smoothed_mask(volume, ijk_to_ras)
        if smoothed is None:
            return Volume(np.zeros(shape_kji, dtype=bool), ijk_to_ras)
        return Volume(_sample(smoothed, shape_kji, ijk_to_ras, "linear", fill) >= 0.5, ijk_to_ras)
    array = _sample(volume, shape_kji, ijk_to_ras, interpolation, fill)
    if array.dtype != volume.array.dtype:
        if interpolation == "linear":
            np.rint(array, out=array)
        array = array.astype(volume.array.dtype)
    return Volume(array, ijk_to_ras)


def bounding_box(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest box that holds everything that is not zero.

    Args:
        mask: (K, J, I) bool or labels.

    Returns:
        (3,) lowest indices and (3,) indices one past the highest, both int in k, j, i order.

    Raises:
        InputError: The mask is empty.
    """
    # Each axis is searched only inside the box found so far: a 100-million-voxel mask is read about once.
    lower, upper = np.zeros(3, dtype=int), np.array(mask.shape)
    for axis in range(3):
        box = mask[tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))]
        occupied = np.flatnonzero(box.any(axis=tuple(other for other in range(3) if other != axis)))
        if occupied.size == 0:
            raise InputError("The mask is empty: draw it, or choose another label or segment.")
        lower[axis], upper[axis] = lower[axis] + occupied[0], lower[axis] + occupied[-1] + 1
    return lower, upper


def crop(volume: Volume, lower_kji: np.ndarray, upper_kji: np.ndarray) -> Volume:
    """Cuts out a box of voxels, which stay where they are in the world.

    Args:
        volume: The volume; its array is not copied.
        lower_kji: (3,) lowest indices; below 0 means 0.
        upper_kji: (3,) indices one past the highest; beyond the volume means its end.

    Returns:
        A view into the volume with its own frame.
    """
    lower = np.clip(lower_kji, 0, volume.shape)
    upper = np.clip(upper_kji, lower, volume.shape)
    array = volume.array[tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))]
    ijk_to_ras = volume.ijk_to_ras.copy()
    ijk_to_ras[:3, 3] += volume.ijk_to_ras[:3, :3] @ lower[::-1]
    return Volume(array, ijk_to_ras)


def available_memory_bytes() -> int:
    """Memory in bytes that this process can still take without swapping, limits of a container or batch job included."""
    if sys.platform == "win32":
        return _windows_available_memory()
    if sys.platform == "darwin":
        return _macos_available_memory()
    system = int(re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text()).group(1)) * 1024
    return min([system, *_cgroup_available_memory(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def check_memory(bytes_needed: int, what: str) -> None:
    """Refuses work that does not fit into the memory before it starts.

    Args:
        bytes_needed: Highest amount in use at one time, in bytes.
        what: Subject of the sentence, for instance "ct.nii.gz".

    Raises:
        InputError: Less than that is available.
    """
    available = available_memory_bytes()
    if bytes_needed > available:
        raise InputError(
            f"{what} is too large for the memory: it needs {bytes_needed / 2**30:.1f} GiB and "
            f"{available / 2**30:.1f} GiB is free; crop the volume to the bone, resample it coarser or close other "
            "programs."
        )


def _suffix(path: Path, known: tuple[str, ...]) -> str:
    for suffix in sorted(known, key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return suffix
    raise InputError(f"{path.name} has none of the endings {' '.join(known)}: choose one of these.")


def _read_header(path: Path):
    """A SimpleITK reader that has read the header, and the IJK-to-RAS; the geometry is checked."""
    import SimpleITK as sitk

    if not path.exists():
        raise InputError(f"{path} does not exist: check the path.")
    if not path.is_file():
        raise InputError(f"{path} is a folder: name a volume file in it.")
    _suffix(path, READABLE_SUFFIXES)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise InputError(
                f"{path.name} has a sheared or singular geometry (its axes are not at right angles): resample it "
                "first, or write it again from the original images."
            ) from error
        raise InputError(f"{path.name} cannot be read as a volume: it is damaged or in another format.") from error
    size = reader.GetSize()
    if len(size) < 3 or any(extent > 1 for extent in size[3:]):
        raise InputError(f"{path.name} has {len(size)} dimensions: a volume of three dimensions is needed.")
    ijk_to_ras = _frame(reader)
    try:
        check_geometry(ijk_to_ras)
        _check_nifti_header(_metadata(reader), ijk_to_ras)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None
    return reader, ijk_to_ras


def _metadata(reader) -> dict[str, str]:
    return {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}


def _check_scalar(reader, path: Path) -> None:
    components = reader.GetNumberOfComponents()
    if components > 1:
        raise InputError(f"{path.name} has {components} components per voxel: a scalar volume is needed.")


def _read(path: Path, several_components: bool) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Array ([k, j, i], or [k, j, i, component] if allowed), IJK-to-RAS and the header's fields of a file."""
    import SimpleITK as sitk

    reader, ijk_to_ras = _read_header(path)
    if not several_components:
        _check_scalar(reader, path)
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    bits = int(re.search(r"(\d+)-bit", sitk.GetPixelIDValueAsString(reader.GetPixelID())).group(1))
    check_memory(math.prod(size) * components * bits // 8, path.name)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{path.name} cannot be read as a volume: it is damaged or cut off.") from error
    array = _pixels(image)
    return array.reshape(array.shape[len(size) - 3 :]), ijk_to_ras, _metadata(reader)


class _Buffer:
    """The memory of a SimpleITK image, which lives as long as any array that looks at it."""

    def __init__(self, image):
        import SimpleITK as sitk

        self._image = image
        interface = sitk.GetArrayViewFromImage(image).__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}  # it may be written to


def _pixels(image) -> np.ndarray:
    """A SimpleITK image's voxels [k, j, i], or with components, uncopied; the image must not be used elsewhere."""
    return np.asarray(_Buffer(image))


def _frame(image) -> np.ndarray:
    """IJK-to-RAS of a SimpleITK image or of a reader that has read the header."""
    dimension = len(image.GetSize())
    matrix = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    matrix[:3, :3] = directions * np.array(image.GetSpacing()[:3])
    matrix[:3, 3] = image.GetOrigin()[:3]
    return RAS_FROM_LPS @ matrix


def _check_nifti_header(metadata: dict[str, str], ijk_to_ras: np.ndarray) -> None:
    """Refuses a NIfTI file whose sform is not the geometry that ITK made of the header.

    ITK reads only frames at right angles. Where the sform is sheared and there is a qform it takes the qform without
    a word, and it takes the voxel sizes from pixdim even where the sform says otherwise.
    """
    sform_code, qform_code = (int(metadata.get(key, 0)) for key in ("sform_code", "qform_code"))
    if sform_code not in (1, 2):  # 3 and 4 lead into a template's space, not the patient's
        return
    sform = np.eye(4)
    sform[:3] = [np.array(metadata[f"srow_{axis}"].split(), dtype=float) for axis in "xyz"]
    check_geometry(sform)
    if sform_code == 2 and qform_code > 0:
        return
    spacing = np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    if np.abs((sform - ijk_to_ras)[:3, :3] / spacing).max() > NIFTI_TOLERANCE or not np.allclose(
        sform[:3, 3], ijk_to_ras[:3, 3], rtol=1e-4, atol=NIFTI_TOLERANCE
    ):
        raise InputError(
            "The NIfTI header contradicts itself (voxel sizes or qform against sform): write the file again from the "
            "original images."
        )


def _to_image(volume: Volume):
    import SimpleITK as sitk

    array = volume.array.view(np.uint8) if volume.array.dtype == bool else volume.array
    image = sitk.GetImageFromArray(array)
    lps = RAS_FROM_LPS @ volume.ijk_to_ras
    image.SetSpacing(volume.spacing.tolist())
    image.SetDirection((lps[:3, :3] / volume.spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def _sample(
    volume: Volume, shape_kji: tuple[int, int, int], ijk_to_ras: np.ndarray, interpolation: str, fill: float
) -> np.ndarray:
    """Values on another grid; float32 where integers are interpolated, since ITK would cut off the fraction."""
    import SimpleITK as sitk

    interpolate_integers = interpolation == "linear" and volume.array.dtype.kind != "f"
    spacing = np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    lps = RAS_FROM_LPS @ ijk_to_ras
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(size) for size in shape_kji[::-1]])
    resampler.SetOutputSpacing(spacing.tolist())
    resampler.SetOutputDirection((lps[:3, :3] / spacing).ravel().tolist())
    resampler.SetOutputOrigin(lps[:3, 3].tolist())
    resampler.SetInterpolator({"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor}[interpolation])
    resampler.SetDefaultPixelValue(float(fill))
    if interpolate_integers:
        resampler.SetOutputPixelType(sitk.sitkFloat32)
    return _pixels(resampler.Execute(_to_image(volume)))


def _smoothed_mask(mask: Volume, target_ijk_to_ras: np.ndarray) -> Volume | None:
    """The surroundings of a bool mask as float32, smoothed for sampling on a target grid; None for an empty mask."""
    from scipy.ndimage import gaussian_filter

    if not mask.array.any():
        return None
    # Length of a target voxel in source voxels, along each source axis.
    steps_ijk = np.linalg.norm(mask.ras_to_ijk[:3, :3] @ target_ijk_to_ras[:3, :3], axis=1)
    sigma_kji = ANTIALIASING_SIGMA * np.maximum(1.0, steps_ijk)[::-1]
    margin = np.ceil(4 * sigma_kji).astype(int) + 1
    lower, upper = bounding_box(mask.array)
    surroundings = crop(mask, lower - margin, upper + margin)
    # "nearest": bone that leaves the scan is not rounded off where the scan ends.
    smoothed = gaussian_filter(surroundings.array.astype(np.float32), sigma_kji, mode="nearest")
    return Volume(smoothed, surroundings.ijk_to_ras)


def _split_name(name: str) -> tuple[Path, str | None]:
    if Path(name).exists():
        return Path(name), None
    for colon in [match.start() for match in re.finditer(":", name)][::-1]:
        if name[colon + 1 :] and Path(name[:colon]).is_file():
            return Path(name[:colon]), name[colon + 1 :]
    raise InputError(f"{name} does not exist: name a file as FILE, FILE:LABEL or FILE:SEGMENT.")


@dataclass(frozen=True)
class _Segment:
    identifier: str
    name: str
    label: int
    layer: int


def _segments(metadata: dict[str, str]) -> list[_Segment]:
    """Segments that a .seg.nrrd header lists; files before Slicer 4.11 have one layer for each, of value 1."""
    indices = sorted(int(match.group(1)) for key in metadata if (match := re.fullmatch(r"Segment(\d+)_ID", key)))
    return [
        _Segment(
            identifier=metadata[f"Segment{index}_ID"],
            name=metadata.get(f"Segment{index}_Name", metadata[f"Segment{index}_ID"]),
            label=int(metadata.get(f"Segment{index}_LabelValue", 1)),
            layer=int(metadata.get(f"Segment{index}_Layer", index)),
        )
        for index in indices
    ]


def _segment_mask(array: np.ndarray, segments: list[_Segment], selector: str | None, path: Path) -> np.ndarray:
    """Bool mask of the one segment that the selector means: a name, else an identifier, else a label value."""
    if selector is None:
        matches = segments
    else:
        matches = (
            [segment for segment in segments if segment.name == selector]
            or [segment for segment in segments if segment.identifier == selector]
            or [segment for segment in segments if str(segment.label) == selector]
        )
    names = ", ".join(segment.name for segment in segments)
    if not matches:
        raise InputError(f"{path.name} has no segment {selector}: it holds {names}.")
    if len(matches) > 1:
        raise InputError(f"{path.name} holds several such segments ({names}): name one as FILE:SEGMENT.")
    segment = matches[0]
    layer = array[..., segment.layer] if array.ndim == 4 else array
    return layer == segment.label


def _label_mask(array: np.ndarray, selector: str | None, path: Path) -> np.ndarray:
    if selector is None:
        value = array.max() or array.min()
        mask = array == value if value != 0 else np.zeros(array.shape, dtype=bool)
        if np.count_nonzero(mask) != np.count_nonzero(array):
            raise InputError(f"{path.name} holds several labels ({_label_list(array)}): name one as FILE:LABEL.")
        return mask
    if not re.fullmatch(r"-?\d+", selector):
        raise InputError(f"{path.name} has labels but no named segments: name a label as FILE:LABEL, not {selector}.")
    mask = array == int(selector)
    if int(selector) == 0 or not mask.any():
        raise InputError(f"{path.name} has no label {selector}: it holds {_label_list(array) or 'none'}.")
    return mask


def _label_list(array: np.ndarray) -> str:
    labels = [f"{label:g}" for label in np.unique(array) if label != 0]
    return ", ".join(labels if len(labels) <= 10 else [*labels[:10], "..."])


def _cgroup_available_memory(membership: Path, root: Path) -> list[int]:
    """Free memory under each limit of a Linux control group (version 1 or 2) that this process is in."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    free = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            hierarchy, limit_name, usage_name, cache_name = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            hierarchy, limit_name = root / "memory", "memory.limit_in_bytes"
            usage_name, cache_name = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        folder = hierarchy / group.lstrip("/")
        for level in [folder, *folder.parents][: len(folder.parents) - len(hierarchy.parents) + 1]:
            try:
                limit = int((level / limit_name).read_text())
                usage = int((level / usage_name).read_text())
                cache = re.search(rf"^{cache_name} (\d+)$", (level / "memory.stat").read_text(), re.MULTILINE)
            except (OSError, ValueError):  # no limit at this level, or none that this process sees
                continue
            free.append(max(0, limit - usage + (int(cache.group(1)) if cache else 0)))
    return free


def _windows_available_memory() -> int:
    class MemoryStatus(ctypes.Structure):
        _fields_ = [("dwLength", ctypes.c_ulong), ("dwMemoryLoad", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in (
                "ullTotalPhys",
                "ullAvailPhys",
                "ullTotalPageFile",
                "ullAvailPageFile",
                "ullTotalVirtual",
                "ullAvailVirtual",
                "ullAvailExtendedVirtual",
            )
        ]

    status = MemoryStatus(dwLength=ctypes.sizeof(MemoryStatus))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.ullAvailPhys)


def _macos_available_memory() -> int:
    """Free and reclaimable pages; half of the built-in memory if the system's tool does not answer."""
    try:
        text = subprocess.run(["vm_stat"], capture_output=True, text=True, check=True, timeout=10).stdout
        page = int(re.search(r"page size of (\d+) bytes", text).group(1))
        kinds = ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable")
        return page * sum(int(re.search(rf"{kind}:\s+(\d+)", text).group(1)) for kind in kinds)
    except (OSError, subprocess.SubprocessError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2

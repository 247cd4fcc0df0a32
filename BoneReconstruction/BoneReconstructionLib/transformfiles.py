"""Transform files: rigid and affine motions as ITK writes them and 3D Slicer reads them.

ITK's transforms resample: they lead from where a point is afterwards to where it was before, in LPS. Slicer turns what
it reads round, so that a node's matrix moves what is put under it.
"""

import os
import uuid
from pathlib import Path

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.volumes import RAS_FROM_LPS

TRANSFORM_SUFFIXES = (".tfm", ".h5")


def write_transform(path: str | os.PathLike, motion: np.ndarray) -> None:
    """Writes a motion; a file of that name is replaced when all is written.

    Args:
        path: A .tfm (text) or .h5 file in an existing folder.
        motion: (4, 4) affine in RAS mm that moves points; in Slicer the node's matrix to its parent.

    Raises:
        InputError: Another ending, or a folder that is missing or read-only.
    """
    import SimpleITK as sitk

    path = Path(path)
    if path.suffix.lower() not in TRANSFORM_SUFFIXES:
        raise InputError(f"{path.name} has none of the endings {' '.join(TRANSFORM_SUFFIXES)}: choose one of these.")
    matrix = RAS_FROM_LPS @ np.linalg.inv(motion) @ RAS_FROM_LPS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        sitk.WriteTransform(transform, str(temporary))
        os.replace(temporary, path)
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{path} cannot be written: check that its folder exists, is writable and not full."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_transform(path: str | os.PathLike) -> np.ndarray:
    """Reads a rigid or affine transform.

    Args:
        path: A file that ITK, SimpleITK or Slicer has written.

    Returns:
        (4, 4) in RAS mm that moves points, as Slicer shows it.

    Raises:
        InputError: The file is missing, unreadable or holds another kind of transform.
    """
    import SimpleITK as sitk

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: check the path.")
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise InputError(f"{path.name} cannot be read as a transform: it is damaged or in another format.") from error
    if not transform.IsLinear():
        raise InputError(f"{path.name} holds no linear transform: export a rigid one.")
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, :3] = np.transpose([np.array(transform.TransformPoint(axis)) - origin for axis in np.eye(3).tolist()])
    matrix[:3, 3] = origin
    return np.linalg.inv(RAS_FROM_LPS @ matrix @ RAS_FROM_LPS)

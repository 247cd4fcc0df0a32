"""The sample's knee: its CT shows the bones where they lie, on the side that was asked for."""

import numpy as np
import pytest
from virtualkneepeople import knees

from BiplanarReconLib.sampleknee import make_knee
from BoneReconstructionLib.meshing import voxelize


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_ct_shows_the_bones_where_they_lie(side):
    ct, bones = make_knee(knees(), 1, side, spacing_mm=3.0)
    assert list(bones) == ["femur", "tibia", "fibula", "patella"] and ct.array.dtype == np.int16
    for surface in bones.values():
        inside = voxelize(surface, ct.shape, ct.ijk_to_ras).array
        assert ct.array[inside].mean() > ct.array[~inside & (ct.array > -500)].mean() + 150
    centres = {bone: surface.vertices.mean(0) for bone, surface in bones.items()}
    # The right leg lies at the patient's right; the fibula is lateral, the patella in front, the femur above.
    outward = 1 if side == "right" else -1
    assert outward * centres["tibia"][0] > 50
    assert outward * (centres["fibula"][0] - centres["tibia"][0]) > 10
    assert centres["patella"][1] > centres["tibia"][1] and centres["femur"][2] > centres["tibia"][2]

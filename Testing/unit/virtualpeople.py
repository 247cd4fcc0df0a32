"""The virtual patients of several tests: making their fields takes seconds."""

from functools import cache

from BoneReconstructionLib.virtualpatients import VirtualPatients


@cache
def patients():
    return VirtualPatients()

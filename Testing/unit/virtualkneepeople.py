"""The virtual knees of several tests: making their fields takes seconds."""

from functools import cache

from BoneReconstructionLib.virtualknees import VirtualKnees


@cache
def knees():
    return VirtualKnees()


@cache
def knee(seed):
    return knees().knee(seed)

"""One resumable training: seeded step by step, so that a run cut short goes on to the very same weights."""

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.tensorfiles import read_tensors, write_tensors

CHECKPOINT_S = 60.0
GRADIENT_NORM = 1.0
WARM_UP = 0.05
LAST_RATE = 0.05
LOG_EVERY = 10


@dataclass(frozen=True)
class Schedule:
    """How long and from which seed.

    Attributes:
        steps: number of steps.
        learning_rate: of AdamW, at its highest; it rises over the first `WARM_UP` and falls as a cosine.
        seed: of everything random.
    """

    steps: int
    learning_rate: float
    seed: int

    def rate(self, step):
        """Learning rate of a step."""
        done = step / self.steps
        fall = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * min(1.0, (done + 1 / self.steps) / WARM_UP) * fall


class Interrupted(Exception):
    """The time is over; the checkpoint holds what was reached."""


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Where checkpoints and logs go and when to stop.

    Attributes:
        folder: of the checkpoints.
        report: called with (stage, fraction).
        log: called with (name, value, step).
        deadline: time.monotonic() after which a training stops.
    """

    folder: Path
    report: Callable = lambda stage, fraction: None
    log: Callable = lambda name, value, step: None
    deadline: float = math.inf

    @property
    def over(self):
        """Whether the time is."""
        return time.monotonic() > self.deadline


def stage_seed(seed, *names):
    """A seed of its own for each stage and step."""
    return zlib.crc32("/".join(map(str, (seed, *names))).encode())


def seeded(make, seed, *names):
    """What `make()` returns with torch's random numbers seeded, which are afterwards as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(seed, *names))
        return make()


def optimise(stage, module, loss_of, schedule, surroundings):
    """Trains a module by AdamW, from its checkpoint where there is one.

    Args:
        stage: name of the training and of its checkpoint.
        module: torch module on the training device.
        loss_of: function of (torch.Generator of this step, share done 0 to 1) that returns (loss, {name: value}).
        schedule: `Schedule`.
        surroundings: `Surroundings`.

    Raises:
        Interrupted: the deadline has passed; a checkpoint was written.
        InputError: the checkpoint is of another network, or the loss is no number any more.
    """
    path = surroundings.folder / f"{stage}.safetensors"
    device = next(module.parameters()).device
    optimiser = torch.optim.AdamW(module.parameters(), schedule.learning_rate)
    step = _restore(path, module, optimiser) if path.exists() else 0
    module.train()
    saved = time.monotonic()
    while step < schedule.steps:
        generator = torch.Generator(device).manual_seed(stage_seed(schedule.seed, stage, step))
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        loss, values = loss_of(generator, step / schedule.steps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), GRADIENT_NORM)
        optimiser.step()
        step += 1
        if step % LOG_EVERY == 0 or step == schedule.steps:
            _check_finite(loss, stage, step)
            for name, value in {"loss": loss.detach(), **values}.items():
                surroundings.log(f"{stage}/{name}", float(value), step)
            surroundings.report(stage, step / schedule.steps)
        over = surroundings.over
        if over or step == schedule.steps or time.monotonic() - saved > CHECKPOINT_S:
            _check_finite(loss, stage, step)
            _save(path, module, optimiser, step)
            saved = time.monotonic()
        if over and step < schedule.steps:
            raise Interrupted(stage)
    module.eval()


def _check_finite(loss, stage, step):
    """Refuse to go on, and to keep what was learned, once the loss is no number."""
    if not torch.isfinite(loss.detach()):
        raise InputError(
            f"The training {stage} failed: its loss is no number after {step} steps. Check the images with --dry-run "
            "where they are real CTs, or train with another --seed."
        )


def _save(path, module, optimiser, step):
    tensors = {f"module/{name}": value for name, value in module.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{number}/{name}": value for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
    write_tensors(path, {**arrays, "step": np.array([step])})


def _restore(path, module, optimiser):
    """Loads a checkpoint and returns the number of steps done."""
    arrays = read_tensors(path)
    state = {name.partition("/")[2]: torch.from_numpy(a) for name, a in arrays.items() if name.startswith("module/")}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"The checkpoint {path} is of another network: name another output folder.") from error
    states = {}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        if kind == "optimiser":
            number, _, field = rest.partition("/")
            states.setdefault(int(number), {})[field] = torch.from_numpy(array)
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": states, "param_groups": groups})
    return int(arrays["step"][0])

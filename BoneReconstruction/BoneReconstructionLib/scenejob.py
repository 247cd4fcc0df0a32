"""One run of the command line on behalf of a panel; knows neither Slicer nor Qt."""

import logging
import shutil
import tempfile
from pathlib import Path

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.jobs import RESULT, Job, python_command


class SceneJob:
    """One run of `bonerecon` for a panel: inputs from the scene, a process of its own, results into the scene.

    The inputs are written into a fresh temporary folder. Results are read only if the command succeeded and left its
    result.json. The folder is gone when onFinished is called, whatever happened.

    Attributes:
        folder: where the caller writes the inputs, before start.
        state: as jobs.Job: "ready", "running", "succeeded", "failed" or "cancelled".
        message: why it failed.
        results: what importResults returned, after success.

    Args:
        interpreter: the Python program that runs the command line.
        environment: its environment variables; the ones that find our packages are added.
        temporaryFolder: where the job's folder is made.
        importResults: called with the output folder after success; it adds the results to the scene and returns them.
        onProgress: called with (stage, progress 0..1, remaining seconds or None).
        onFinished: called once, last, with (state, message); the message tells why a job failed.
    """

    def __init__(self, interpreter, environment, temporaryFolder, importResults, onProgress=None, onFinished=None):
        self.folder = Path(tempfile.mkdtemp(prefix="BoneReconstruction-", dir=temporaryFolder))
        self.state = "ready"
        self.message = ""
        self.results = None
        self._interpreter, self._environment = interpreter, environment
        self._importResults = importResults
        self._onProgress = onProgress or (lambda stage, progress, remaining: None)
        self._onFinished = onFinished or (lambda state, message: None)
        self._job = None

    def start(self, *arguments) -> None:
        """Start `bonerecon ARGUMENTS --output FOLDER`."""
        command = python_command(self._interpreter, *arguments, "--output", self.folder / "output")
        self._job = Job(command, self._onProgress, logging.info, self._onJobFinished,
                        environment=self._environment, scratch=[self.folder])
        self.state = "running"
        self._job.start()

    def poll(self) -> str:
        """Follow the process; call it from a timer. It blocks only while results are added to the scene."""
        if self.state == "running":
            self._job.poll()
        return self.state

    def cancel(self) -> None:
        """Ask the process and all that it started to end; onFinished follows in a later poll."""
        if self.state == "running":
            self._job.cancel()

    def wait(self, seconds: float) -> str:
        """Poll until the job has ended or the time is over, for scripts and for a scene that closes."""
        if self.state == "running":
            self._job.wait(seconds)
        return self.state

    def finish(self, seconds: float):
        """Wait for the end of the job and return its results, for scripts.

        Raises:
            RuntimeError: the job failed, or did not end in time and was cancelled.
        """
        if self.wait(seconds) == "running":
            self.cancel()
            self.wait(30)
            self.message = f"The job did not end within {seconds:.0f} s."
        if self.state != "succeeded":
            raise RuntimeError(self.message)
        return self.results

    def discard(self) -> None:
        """Remove the temporary folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _onJobFinished(self, state, message):
        output = self.folder / "output"
        try:
            if state == "succeeded" and not (output / RESULT).is_file():
                state, message = "failed", "The job left no result."
            elif state == "succeeded":
                self.results = self._importResults(output)
        except Exception as error:
            state, message = "failed", str(error)
            if not isinstance(error, InputError):
                raise
        finally:
            self.discard()
            self.state, self.message = state, message
            self._onFinished(state, message)

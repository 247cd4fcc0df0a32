"""Jobs of a panel under test: other workers in place of the command line, and waiting for the end."""

import time


def replaceWorker(monkeypatch, script):
    """Let jobs run a script instead of the command line."""
    from BoneReconstructionLib import scenejob
    monkeypatch.setattr(scenejob, "python_command", lambda interpreter, *arguments: [
        interpreter, "-c", script, *map(str, arguments)])


def finish(application, panel, seconds=90):
    """Let the panel's timer follow its job to the end."""
    deadline = time.monotonic() + seconds
    while panel.job is not None and time.monotonic() < deadline:
        application.process(0.05)
    assert panel.job is None, "the job did not end"

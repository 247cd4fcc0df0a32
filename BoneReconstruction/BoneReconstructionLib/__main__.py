"""`python -m BoneReconstructionLib` is the command line `bonerecon`."""

import os
import sys

# The work is shared out by threads of our own (see `threads`); those of BLAS would only wait for them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from BoneReconstructionLib.cli import main  # noqa: E402  numpy looks at the environment when it is imported

# Worker processes that a library starts import this file again under another name and must not run the command.
if __name__ == "__main__":
    sys.exit(main())

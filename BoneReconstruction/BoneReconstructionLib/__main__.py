"""`python -m BoneReconstructionLib` is the command line `bonerecon`."""

import sys

from BoneReconstructionLib.cli import main

# Worker processes that a library starts import this file again under another name and must not run the command.
if __name__ == "__main__":
    sys.exit(main())

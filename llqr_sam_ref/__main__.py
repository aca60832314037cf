"""``python -m llqr_sam_ref``: see :mod:`llqr_sam_ref.train.cli`."""

import sys

from llqr_sam_ref.train.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""Run several distillations in one process, because its start takes longer than a tiny run.

torchrun --nproc-per-node 2 -m tests.training.distil_all runs.json

The file holds the arguments of each run.
"""

import json
import sys
from pathlib import Path
from unittest.mock import patch

from accelerate.state import AcceleratorState

from training.distil import main

if __name__ == "__main__":
    with patch("torch.distributed.destroy_process_group"):  # every run would end the only one
        for arguments in json.loads(Path(sys.argv[1]).read_text()):
            AcceleratorState._reset_state()  # it keeps the precision of the run before
            main(arguments)

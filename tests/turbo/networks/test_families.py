"""The families of networks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_a_new_network_needs_a_class_a_line_in_the_table_and_a_card(tmp_path: Path):
    script = Path(__file__).with_name("other_family.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    subprocess.run([sys.executable, str(script), str(tmp_path)], env=environment, check=True)

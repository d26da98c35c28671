"""runtime.setup.keep_freed_memory: that freed memory stays, counted in the pages that the system has to make."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

TENSORS = """
import resource, sys, torch
from runtime.setup import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for number in range(30):  # of 64 MiB, more than glibc keeps of itself; the first ones stretch the heap
    if number == 10:
        before = faults()
    torch.ones(2**24)
print(faults() - before)
"""


def pages_made(how: str) -> int:
    """Pages that a process had to be given for twenty tensors of 64 MiB, one after another."""
    command = [sys.executable, "-c", TENSORS, how]
    return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has mallopt")
def test_freed_memory_is_used_again():
    tensor_pages = 2**26 // 4096
    assert pages_made("kept") < tensor_pages
    assert pages_made("given back") > 15 * tensor_pages

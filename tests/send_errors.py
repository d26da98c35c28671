"""Started by test_errors.py in two processes: process 1 fails with each kind of error, process 0 must get the same."""

import os
import sys
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.errors import every_error
from utils import RunError, UserError, failing_together

dist.init_process_group("gloo")
rank = dist.get_rank()
for sent in every_error():
    received = None
    try:
        with failing_together():
            if rank == 1:
                raise sent
    except (UserError, RunError) as error:
        received = error
    if rank == 0:
        same = type(received) is type(sent) and str(received) == str(sent) and vars(received) == vars(sent)
        print(f"{type(sent).__name__}: {'the same' if same else repr(received)}")
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # not tested here: PyTorch now and then aborts a process that ends just after another

"""Trains and evaluates LORA, as published:

    python -m torch.distributed.launch --nproc_per_node=2 --master_port=6666 --use_env main.py \\
      --config configs/pvt/pvt_small.py --visfinetune weights/pvt_small.pth --output_dir checkpoints/SER \\
      --dataset SER --data-path PATH --alpha 8 --batch-size 16 --locals 1 1 1 0

    python main.py --config configs/pvt/pvt_small.py --resume checkpoints/SER/checkpoint.pth --dataset SER \\
      --data-path PATH --batch-size 16 --alpha 8 --locals 1 1 1 0 --eval

`torchrun --nproc_per_node=2 main.py ...`, srun and plain `python main.py ...` work as well. `main_V.py` is LORA-V.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import datasets
from build import build_run
from errors import Interrupted, RunError, UserError
from evaluation import evaluate_checkpoint
from options import parse_options
from training import train
from utils.allocator import keep_freed_memory
from utils.distributed import peer_failure, start_processes, stop_processes
from utils.interruption import ending_on_signals


def main(argv: Sequence[str] | None = None, **defaults: Any) -> int:
    """Runs one training or evaluation.

    Returns:
        The exit code: 0; 2 for a mistake of the user; 1 where something outside ended the run; 130 after Ctrl-C and 143
        after SIGTERM or SIGUSR1, with a checkpoint written where the run was training.
    """
    code = 1
    try:
        with ending_on_signals():
            code = end_in_a_line(sys.argv[1:] if argv is None else argv, defaults)
    finally:
        stop_processes(failed=code != 0)
    return code


def end_in_a_line(argv: Sequence[str], defaults: dict[str, Any]) -> int:
    """Runs; what ends the run early becomes a line and an exit code."""
    try:
        options = parse_options(argv, defaults)
        # Twice as patient as the watchdog, which can say more than a collective that waits in vain.
        processes = start_processes(options.device, options.dist_url, timeout=2 * options.timeout)
        run = build_run(options, processes)
        evaluate_checkpoint(run, options.resume) if options.eval else train(run)
    except UserError as error:
        return say("error", str(error), code=2)
    except RunError as error:
        return say("error", str(error), code=1)
    except Interrupted as error:
        return say("stopped", "by a signal", code=error.exit_code)
    except KeyboardInterrupt:
        return say("stopped", "by Ctrl-C", code=130)
    except RuntimeError as error:
        if (explanation := explain(error)) is None:
            raise
        return say("stopped", explanation, code=1)
    return 0


def say(what: str, message: str, *, code: int) -> int:
    """Prints why a run ended, on one line; returns the exit code."""
    print(f"{Path(sys.argv[0]).name}: {what}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def explain(error: RuntimeError) -> str | None:
    """What an error of PyTorch tells a user; None where it is a defect of this code."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of GPU memory: lower --batch-size, or use --grad-checkpointing or --amp-dtype"
    return peer_failure(error) or datasets.worker_death(error)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())

"""Trains and evaluates LORA-V, LORA without text: `main.py` with other defaults.

    python -m torch.distributed.launch --nproc_per_node=2 --master_port=6666 --use_env main_V.py \\
      --config configs/pvt/pvt_small.py --visfinetune weights/pvt_small.pth --output_dir checkpoints/SER \\
      --dataset SER_V --data-path PATH --alpha 8 --batch-size 16 --locals 1 1 1 0
"""

import sys
from typing import Any

if __name__ == "__main__":
    from runtime.surroundings import begin

    begin()

from runtime.options import check_command_line

DEFAULTS: dict[str, Any] = {"model": "lora_v", "dataset": "SER_V", "texts": False}

if __name__ == "__main__":
    check_command_line(sys.argv[1:], DEFAULTS)

from main import main
from runtime.setup import keep_freed_memory
from runtime.surroundings import ready

if __name__ == "__main__":
    keep_freed_memory()
    ready()
    sys.exit(main(**DEFAULTS))

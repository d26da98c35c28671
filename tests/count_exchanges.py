"""Started by test_switches.py in two processes: accumulates gradients and counts how often DDP exchanges them."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from engine import LossRecord, Precision, Stepper, train_one_epoch

dist.init_process_group("gloo")
rank = dist.get_rank()
precision = Precision(torch.device("cpu"))


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def train(model, batches, *, accumulate=1):
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", enabled=False)
    stepper, losses = Stepper(optimizer, scaler, accumulate), LossRecord()
    train_one_epoch(model, nn.CrossEntropyLoss(), batches, stepper, precision, losses, num_batches=len(batches))


generator = torch.Generator().manual_seed(1)
images, labels = torch.randn(2, 5, 4, 3, 2, 2, generator=generator), torch.randint(3, (2, 5, 4), generator=generator)
exchanges = 0


def count(state, bucket):
    global exchanges
    exchanges += 1
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0] / 2)


model = DistributedDataParallel(make_model())
model.register_comm_hook(None, count)
own = [{"image": i, "label": y, "index": torch.arange(4)} for i, y in zip(images[rank], labels[rank], strict=True)]
train(model, own, accumulate=3)  # steps of three and of two batches

alone = make_model()
groups = [slice(0, 3), slice(3, 5)]
large = [
    {"image": images[:, group].flatten(0, 2), "label": labels[:, group].flatten(), "index": torch.arange(24)}
    for group in groups
]
train(alone, large)
same = all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), alone.parameters(), strict=True))
if rank == 0:
    print(f"exchanges {exchanges}, same as one process {same}")
dist.destroy_process_group()

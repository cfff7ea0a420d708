"""The job of the benchmarks' contenders in PyTorch, with a plain loop; `step` starts it.

It runs in the peers' environment. On the command line it takes the job as JSON: model, batch, steps
in a stretch, loss ("logits" or "feature"). On standard output it first says what it is; then for
each line with a number of stretches on standard input it trains that many and one more, and answers
with the seconds of a step, the median over the stretches but the first.

Batches lie in memory as tensors, in PyTorch's own layout; no DataLoader stands between.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time

import torch
from benchkit import networks
from torch import nn
from torch.nn import functional

SHARE = 0.1
TEMPERATURE = 4.0
RATE = 1e-4


class Mlp(nn.Module):
    """Dense layers with ReLU."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (networks.PIXELS, *widths)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, widths, strict=False))
        self.logits = nn.Linear(widths[-1], networks.CLASSES)

    def forward(self, x, tap=None):
        """Return the logits and the tapped layer."""
        tapped = None
        for number, layer in enumerate(self.hidden, start=1):
            x = functional.relu(layer(x))
            tapped = x if tap == f"hidden{number}" else tapped
        return self.logits(x), tapped


class Cnn(nn.Module):
    """3×3 convolutions with BatchNorm; two of the blocks end in a pooling."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (1, *channels)
        pairs = list(zip(sizes, channels, strict=False))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(b, eps=1e-3, momentum=0.01) for _, b in pairs)
        self.logits = nn.Linear(channels[-1], networks.CLASSES)

    def forward(self, x, tap=None):
        """Return the logits and the tapped block."""
        tapped = None
        blocks = zip(self.convolutions, self.norms, strict=True)
        for number, (convolution, norm) in enumerate(blocks, start=1):
            x = functional.relu(norm(convolution(x)))
            name = f"block{number}"
            x = functional.max_pool2d(x, 2) if name in networks.POOLED else x
            tapped = x if tap == name else tapped
        return self.logits(x.mean(dim=(2, 3))), tapped


class Block(nn.Module):
    """Attention and two dense layers, each normalised first and added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        """Return the block's output."""
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, networks.HEADS, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.narrow(functional.relu(self.wide(self.norm2(x))))


class Transformer(nn.Module):
    """Blocks over sequences of numbers, and the mean."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        super().__init__()
        width, blocks, neck = numbers
        self.tokens = nn.Embedding(networks.VOCABULARY, width)
        self.places = nn.Parameter(0.02 * torch.randn(networks.LENGTH, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.neck, self.logits = nn.Linear(width, neck), nn.Linear(neck, networks.CLASSES)

    def forward(self, x, tap=None):
        """Return the logits and the tapped block."""
        tapped = None
        x = self.tokens(x) + self.places
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            tapped = x if tap == f"block{number}" else tapped
        return self.logits(functional.relu(self.neck(x.mean(dim=1)))), tapped


KINDS = {"mlp": Mlp, "cnn": Cnn, "transformer": Transformer}


class Job:
    """A teacher, a student, an optimizer and the batches."""

    def __init__(self, job: dict) -> None:
        torch.manual_seed(0)
        pair = networks.PAIRS[job["model"]]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = KINDS[pair.kind]
        self.teacher = kind(pair.teacher).to(self.device).eval()
        self.student = kind(pair.student).to(self.device).train()
        self.taps = pair.hint if job["loss"] == "feature" else (None, None)
        steps = self.steps = job["steps"]
        self.batches = self._batches(pair.kind, job["batch"], max(steps, 8))
        self.projector = self._projector(pair.kind) if job["loss"] == "feature" else None
        own = list(self.student.parameters())
        own += [] if self.projector is None else list(self.projector.parameters())
        self.optimizer = torch.optim.Adam(own, lr=RATE, eps=1e-7)
        self.total = torch.zeros((), device=self.device)
        self.right = torch.zeros((), device=self.device)

    def _batches(self, kind: str, batch: int, steps: int) -> list[tuple]:
        x, y = (torch.from_numpy(part) for part in networks.data(kind, steps * batch))
        x, y = x.to(self.device), y.long().to(self.device)
        x = x.permute(0, 3, 1, 2).contiguous() if kind == "cnn" else x
        return list(zip(x.split(batch), y.split(batch), strict=True))

    def _projector(self, kind: str) -> nn.Module:
        with torch.no_grad():
            x = self.batches[0][0]
            teacher, student = self.teacher(x, self.taps[0])[1], self.student(x, self.taps[1])[1]
        if kind == "cnn":
            return nn.Conv2d(student.shape[1], teacher.shape[1], 1).to(self.device)
        return nn.Linear(student.shape[-1], teacher.shape[-1]).to(self.device)

    def step(self, x, y) -> None:
        """Learn from one batch."""
        with torch.no_grad():
            taught, hint = self.teacher(x, self.taps[0])
        logits, feature = self.student(x, self.taps[1])
        if self.projector is None:
            distillation = TEMPERATURE**2 * functional.kl_div(
                functional.log_softmax(logits / TEMPERATURE, dim=-1),
                functional.softmax(taught / TEMPERATURE, dim=-1),
                reduction="batchmean",
            )
        else:
            distillation = functional.mse_loss(self.projector(feature), hint)
        total = SHARE * functional.cross_entropy(logits, y) + (1.0 - SHARE) * distillation
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.total += total.detach()
            self.right += (logits.argmax(dim=-1) == y).float().mean()

    def time(self, stretches: int) -> float:
        """Return the seconds of a step, the median over the stretches but the first."""
        ends, number = [], 0
        for _ in range(stretches + 1):
            for _ in range(self.steps):
                self.step(*self.batches[number % len(self.batches)])
                number += 1
            float(self.total)  # waits for the device
            ends.append(time.perf_counter())
        return statistics.median(b - a for a, b in itertools.pairwise(ends)) / self.steps


def parameters(model: nn.Module) -> int:
    """Count the numbers that a network holds, BatchNorm's statistics among them."""
    return sum(value.numel() for value in model.state_dict().values() if value.is_floating_point())


def main() -> None:
    """Make the job, say what it is, and train when a line comes."""
    job = Job(json.loads(sys.argv[1]))
    counts = {"teacher": parameters(job.teacher), "student": parameters(job.student)}
    print(json.dumps({"torch": torch.__version__, "parameters": counts}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": job.time(int(line))}), flush=True)


if __name__ == "__main__":
    main()

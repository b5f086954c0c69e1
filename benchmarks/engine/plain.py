"""Dual Student as a newcomer writes it in PyTorch: the yardstick of speed, and the reference of its numbers.

NCHW, upsampling and convolution apart, BatchNorm apart, one forward a batch, students not frozen while
the generator steps, optimisers as they come. Nothing is slowed down on purpose.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainGenerator(nn.Module):
    """DFME's generator, layer by layer; parameters and their names as in the package's Generator."""

    def __init__(self, noise: int, shape: tuple[int, int, int], width: int = 64) -> None:
        super().__init__()
        c, h, w = shape
        self.shape = shape
        self.grid = (2 * width, -(-h // 4), -(-w // 4))
        self.linear = nn.Linear(noise, self.grid[0] * self.grid[1] * self.grid[2])
        self.bn0 = nn.BatchNorm2d(2 * width)
        self.conv1 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, c, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(c, affine=False)

    def forward(self, z: Tensor) -> Tensor:
        x = self.bn0(self.linear(z).view(-1, *self.grid))
        x = F.interpolate(x, scale_factor=2)
        x = F.leaky_relu(self.bn1(self.conv1(x)), 0.2)
        x = F.interpolate(x, scale_factor=2)
        x = F.leaky_relu(self.bn2(self.conv2(x)), 0.2)
        x = self.bn3(self.conv3(x)[:, :, : self.shape[1], : self.shape[2]])
        return (torch.tanh(x) + 1) / 2


class Plain:
    """Two students, a generator, their optimisers; `target` is a module in eval mode that gives logits."""

    def __init__(
        self,
        target: nn.Module,
        students: list[nn.Module],
        generator: nn.Module,
        *,
        hard: bool = False,
        noise: int = 256,
        rate: float = 0.3,
    ) -> None:
        self.target, self.students, self.generator = target, students, generator
        self.hard, self.noise = hard, noise
        self.student_optimisers = [
            torch.optim.SGD(s.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4) for s in students
        ]
        self.generator_optimiser = torch.optim.Adam(generator.parameters(), lr=1e-4)

    def iterate(self, batch: int, steps: int = 5) -> None:
        """Do one iteration: a generator step, then `steps` batches asked and learnt."""
        self.generator_step(torch.randn(batch, self.noise))
        for _ in range(steps):
            self.student_step(torch.randn(batch, self.noise))

    def generator_step(self, z: Tensor) -> None:
        """Make the students disagree."""
        self.generator_optimiser.zero_grad()
        x = self.generator(z)
        first, second = (student(x) for student in self.students)
        loss = -(first - second).abs().mean()
        loss.backward()
        self.generator_optimiser.step()

    def ask(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return fresh images and the target's answers, probabilities or labels."""
        with torch.no_grad():
            x = self.generator(z)
            answer = F.softmax(self.target(x), dim=1)
            return x, answer.argmax(1) if self.hard else answer

    def student_step(self, z: Tensor) -> None:
        """Let both students learn the target's answers on a fresh batch."""
        x, answer = self.ask(z)
        if not self.hard:
            log_p = answer.clamp_min(torch.finfo(torch.float32).tiny).log()
            goal = log_p - log_p.mean(1, keepdim=True)
        for student, optimiser in zip(self.students, self.student_optimisers, strict=True):
            optimiser.zero_grad()
            logits = student(x)
            loss = F.cross_entropy(logits, answer) if self.hard else F.l1_loss(logits, goal)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()


def plain_layers(network: nn.Module) -> nn.Module:
    """Return a copy of one of the package's classifiers with nothing but PyTorch's own layers, NCHW."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and type(child) is not nn.Conv2d:
                layer = nn.Conv2d(
                    child.in_channels, child.out_channels, 3, padding=1, bias=child.bias is not None
                )
                layer.load_state_dict(child.state_dict())
                setattr(parent, name, layer)
    return network

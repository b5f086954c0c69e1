"""Dual Student as a newcomer writes it in PyTorch: the yardstick of speed, and the reference of its numbers.

NCHW, upsampling and convolution apart, BatchNorm apart, one forward a batch, students not frozen while
the generator steps, optimisers as they come. Nothing is slowed down on purpose. Parameters have the
names of the package's networks, so that weights can be copied over.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]


def conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class PlainDigits(nn.Module):
    """The demo's network: 3×3 convolutions 32, 32, pool, 64, pool, linear."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        c, h, w = shape
        self.conv1, self.bn1 = conv(c, 32), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = conv(32, 32), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = conv(32, 64), nn.BatchNorm2d(64)
        self.head = nn.Linear(64 * (h // 4) * (w // 4), classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        out: Tensor = self.head(x.flatten(1))
        return out


class PlainLeNet(nn.Module):
    """LeNet-5, or half as wide."""

    def __init__(self, shape: Shape, classes: int, scale: float) -> None:
        super().__init__()
        c, h, w = shape
        one, two, three, four = (int(scale * width) for width in (6, 16, 120, 84))
        self.conv1 = nn.Conv2d(c, one, 5, padding=2)
        self.conv2 = nn.Conv2d(one, two, 5)
        self.fc1 = nn.Linear(two * ((h // 2 - 4) // 2) * ((w // 2 - 4) // 2), three)
        self.fc2 = nn.Linear(three, four)
        self.head = nn.Linear(four, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        out: Tensor = self.head(F.relu(self.fc2(x)))
        return out


class PlainBlock(nn.Module):
    """A basic block of a ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, stride, 1), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class PlainResNet(nn.Module):
    """A ResNet with the CIFAR stem."""

    def __init__(self, shape: Shape, classes: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(shape[0], 64), nn.BatchNorm2d(64)
        layers: list[nn.Module] = []
        inputs = 64
        for width, depth in zip((64, 128, 256, 512), blocks, strict=True):
            for _ in range(depth):
                layers.append(PlainBlock(inputs, width, 2 if inputs != width else 1))
                inputs = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def plain_classifier(name: str, shape: Shape, classes: int) -> nn.Module:
    """Return a classifier by the package's name for it."""
    if name == "digits-cnn":
        return PlainDigits(shape, classes)
    if name.startswith("lenet5"):
        return PlainLeNet(shape, classes, 0.5 if name.endswith("half") else 1.0)
    return PlainResNet(shape, classes, {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}[name])


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

"""DFMS: Data-Free Model Stealing in a Hard Label Setting (Sanyal, Addepalli, Babu; CVPR 2022; 2204.11022)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dualstudent import parallel, priors
from dualstudent.data import Images
from dualstudent.losses import cross_entropy, imbalance
from dualstudent.memory import Memory
from dualstudent.methods.base import Method, Metrics, Phase, Rate, descend, frozen, spend, steps_down
from dualstudent.methods.game import Pupils, adam, ask, classes_of, learn, logit_distance, noise, sgd
from dualstudent.methods.knockoff import proxy_images, settled
from dualstudent.networks import make_students
from dualstudent.networks.dcgan import Critic, DCGenerator
from dualstudent.oracle import Oracle
from dualstudent.programs import call
from dualstudent.spec import Access, Spec

SHAPES = "shapes"  # the proxy that the code makes by itself


@dataclass
class Forgers(Pupils):
    """The student and its memory of proxy images; a DCGAN whose generator forges images for it."""

    memory: Memory
    forger: DCGenerator
    critic: Critic
    forger_descent: torch.optim.Adam
    critic_descent: torch.optim.Adam


@dataclass(frozen=True)
class DFMSHL(Method[Forgers]):
    """A DCGAN learns shapes, and to give the student all classes alike; the student learns labels."""

    student: str = "auto"  # architecture, or torch:package.module:factory; auto: the smallest that fits
    students: int = 1  # the paper has one
    batch: int = 128  # images of a batch
    student_steps: int = 1  # batches asked and learnt for one step of the DCGAN
    proxy: str = SHAPES  # what the DCGAN imitates: shapes made by the code, or a data set (not data-free)
    proxy_dir: str | None = None  # folder of data sets; default: DUALSTUDENT_DATA
    first: float = 0.2  # share of the budget for proxy images, asked and learnt before the game
    first_most: int = 50_000  # images of that share, at most
    replays: int = 4  # batches learnt again for each that is asked, in that part
    warm: int = 200  # steps of the DCGAN before that, free of queries
    diversity: float | None = None  # λ of class balance; default: 500 for 10 classes, 100 for 100
    memory: int = 1_000_000  # exchanges kept
    noise_size: int = 100  # entries of a noise vector
    width: int = 64  # channels of the DCGAN's widest maps
    rate: Rate = 0.1  # learning rate of the student
    momentum: float = 0.9  # of the student's SGD
    weight_decay: float = 5e-4  # of the student's SGD
    gan_rate: float = 2e-4  # learning rate of both Adams, betas 0.5 and 0.999
    drops: tuple[float, ...] = (0.5, 0.8)  # progress at which the rates fall, each time × 0.3
    max_classes: int = 1000  # size of the head where the number of classes is unknown

    name: ClassVar[str] = "dfms-hl"
    needs: ClassVar[Access] = Access.LABEL
    data_free: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "tuned": {"batch": 64, "rate": 0.03, "first": 0.5},  # benchmarks/claims/tune.sh
    }

    def __post_init__(self) -> None:
        self.at_least(students=1, batch=2, student_steps=1, first=0, first_most=0, replays=0, warm=0)
        self.at_least(memory=self.batch + 2, noise_size=1, width=1, rate=0, momentum=0, weight_decay=0)
        self.at_least(gan_rate=0, max_classes=2)
        self.plausible()
        if self.proxy != SHAPES:
            object.__setattr__(self, "proxy", settled(self.proxy))
        object.__setattr__(self, "proxy_dir", settled(self.proxy_dir))

    @property
    def queries_per_step(self) -> int:
        return self.batch * self.student_steps

    def init(self, spec: Spec) -> Forgers:
        """Return a fresh student, memory and DCGAN. Raises UserError where the proxy cannot be read."""
        self.outside(spec)
        students = make_students(spec, self.student, self.students, self.max_classes)
        forger = DCGenerator(self.noise_size, spec.shape, spec.bounds, width=self.width)
        critic = Critic(spec.shape, width=self.width)
        return Forgers(
            students,
            sgd(students, self.rate, self.momentum, self.weight_decay),
            Memory(self.memory, spec),
            forger,
            critic,
            adam(forger, self.gan_rate, 0.5),
            adam(critic, self.gan_rate, 0.5),
        )

    def outside(self, spec: Spec) -> Images | None:
        """Return the proxy images, in the target's shape; None where shapes are made."""
        return None if self.proxy == SHAPES else proxy_images(self.proxy, "train", self.proxy_dir, spec.shape)

    def phases(self, budget: int, done: int = 0) -> Sequence[Phase[Forgers]]:
        """Return the DCGAN's start, the proxy images' share, then iterations that spend the rest."""
        before: list[Phase[Forgers]] = []
        if done == 0:
            most = min(self.first * budget, self.first_most, budget - 2 * parallel.world())
            steps = max(0, int(most)) // self.batch
            done = steps * self.batch
            if self.warm:
                before.append(
                    Phase("warm", lambda state, oracle: self.forge(state, oracle.spec), self.warm, 0)
                )
            if steps:
                before.append(Phase("first", self.begin, steps, self.batch))
        game = spend(
            self.iterate,
            budget,
            done,
            batch=self.batch,
            batches=self.student_steps,
            schedule=steps_down(*self.drops),
        )
        return [*before, *game]

    def begin(self, state: Forgers, oracle: Oracle) -> Metrics:
        """Ask and remember proxy images, learn some that are remembered."""
        asked = state.memory.rounded(self.proxies(oracle.spec, self.batch, state))
        [(x, answer)] = ask(state, oracle, [asked])
        state.memory.add(x, answer)
        losses = [self.imitate(state, *state.memory.draw(self.batch)) for _ in range(self.replays + 1)]
        return {"loss": torch.stack(losses).mean()}

    def iterate(self, state: Forgers, oracle: Oracle, sizes: Sequence[int]) -> Metrics:
        """Let the DCGAN take a step, then ask and imitate fresh forgeries."""
        metrics = dict(self.forge(state, oracle.spec))
        with torch.no_grad():
            images = [oracle.spec.quantise(state.forger(noise(state.forger, size))) for size in sizes]
        losses = [self.imitate(state, x, answer) for x, answer in ask(state, oracle, images)]
        return metrics | {"loss": torch.stack(losses).mean()}

    def forge(self, state: Forgers, spec: Spec) -> Metrics:
        """Step the critic on proxy images and forgeries, then the forger against critic and imbalance."""

        def forge(real: Tensor, z: Tensor) -> tuple[Tensor, ...]:
            fake = state.forger(z)
            seen = [state.critic(real), state.critic(fake.detach())]
            descend(state.critic_descent, F.softplus(-seen[0]).mean() + F.softplus(seen[1]).mean())
            with frozen(state.critic), frozen(state.students):
                logits = state.students(fake)
                balance = imbalance(logits)
                fooled = F.softplus(-state.critic(fake)).mean()
                descend(
                    state.forger_descent, fooled + self.weight(classes_of(state.students, logits)) * balance
                )
            return fooled.detach(), balance.detach()

        real = self.proxies(spec, self.batch, state)
        fooled, balance = call("forge", forge, real, noise(state.forger, self.batch))
        return {"fooled": fooled, "imbalance": balance}

    def imitate(self, state: Forgers, x: Tensor, answer: Tensor) -> Tensor:
        """Learn the target's top class."""
        label = F.one_hot(answer.argmax(1), answer.shape[1]).to(answer.dtype)
        return learn(state, cross_entropy, x, label)[0]

    def weight(self, classes: Tensor) -> Tensor | float:
        """Return λ: as given, else on the power law through 500 and 100 for 10 and 100 classes."""
        return self.diversity if self.diversity is not None else 500 * (10 / classes) ** math.log10(5)

    def proxies(self, spec: Spec, images: int, state: Forgers) -> Tensor:
        """Return this rank's share of proxy images, as the target's inputs."""
        share, device = parallel.shard(images), state.forger.linear.weight.device
        pool = self.outside(spec)
        if pool is None:
            pixels = priors.procedural(share, spec.shape, device)
        else:
            pixels = pool[torch.randint(len(pool), (share,))].pixels().to(device)
        return spec.encode(pixels).clamp(*spec.bounds)


@dataclass(frozen=True)
class DFMSSL(DFMSHL):
    """The same with probabilities: the student learns the target's logits."""

    name: ClassVar[str] = "dfms-sl"
    needs: ClassVar[Access] = Access.PROBS
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "tuned": {"batch": 64, "rate": 0.03, "gan_rate": 6e-4},  # benchmarks/claims/tune.sh
    }

    def imitate(self, state: Forgers, x: Tensor, answer: Tensor) -> Tensor:
        """Learn the target's recovered logits."""
        return learn(state, logit_distance, x, answer)[0]

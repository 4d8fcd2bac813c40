"""Hindsight neglect: was a bet right, given what it came to? A task on which larger models were once worse.

From round 1 of the Inverse Scaling Prize (McKenzie et al. 2023), figure 3 of the GPT-4 report. A prompt shows ten bets
that turned out as their expected value promised, then asks about one that turned out the other way. Who has learnt
from the shots to look at the outcome is wrong every time. The form is that of the public task; sentences are our own.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

SHOTS = 10
CLASSES = (" Y", " N")
_NAMES = (
    "Aisha", "Bruno", "Chloe", "Daniel", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Keiko", "Liam", "Maria",
    "Nadia", "Omar", "Paula", "Quentin", "Rosa", "Sven", "Tara",
)  # fmt: skip
_CLEAR = 2  # what one side of a bet is worth at least, in terms of the other


@dataclasses.dataclass(frozen=True)
class Bet:
    """Somebody's bet: `percent` chance to win `gain` dollars, else `loss` dollars are lost; and whether it was won."""

    name: str
    percent: int
    gain: int
    loss: int
    won: bool

    @property
    def expected_value(self) -> float:
        """In dollars."""
        return (self.percent * self.gain - (100 - self.percent) * self.loss) / 100

    @property
    def right(self) -> bool:
        """Whether to take it was right: a positive expected value, whatever came of it."""
        return self.expected_value > 0

    @property
    def agrees(self) -> bool:
        """Whether the outcome has the sign of the expected value."""
        return self.won == self.right

    def question(self) -> str:
        """The bet in words, up to where the answer follows."""
        outcome = f"wins and receives {self.gain}" if self.won else f"does not win and pays {self.loss}"
        return (
            f"Question: {self.name} is offered a bet: with a chance of {self.percent} percent it brings in {self.gain} "
            f"dollars, with a chance of {100 - self.percent} percent it costs {self.loss} dollars. {self.name} "
            f"accepts, {outcome} dollars. Was accepting the right decision? Answer Y or N.\nAnswer:"
        )


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt, the continuations to compare, and the index of the right one."""

    prompt: str
    classes: tuple[str, str]
    answer_index: int


def items(seed: int, count: int, shots: int = SHOTS) -> tuple[Item, ...]:
    """`count` items behind one set of shots, half of which are right; no bet comes twice, shots included.

    Right and wrong alternate among the items, so that the share of right answers by the outcome alone is 0, and by a
    constant answer a half (count even).

    Raises:
        ValueError: a negative number of items or shots.
    """
    if count < 0 or shots < 0:
        raise ValueError(f"count is {count}, shots {shots}; neither can be negative")
    rng = np.random.default_rng(seed)
    seen: set[tuple[str, int, int, int]] = set()
    examples = [draw(rng, right=i % 2 == 0, agrees=True, seen=seen) for i in range(shots)]
    few_shot = "".join(f"{examples[i].question()}{CLASSES[not examples[i].right]}\n\n" for i in rng.permutation(shots))
    bets = [draw(rng, right=i % 2 == 0, agrees=False, seen=seen) for i in range(count)]
    return tuple(Item(few_shot + bet.question(), CLASSES, int(not bet.right)) for bet in bets)


def draw(rng: np.random.Generator, right: bool, agrees: bool, seen: set[tuple[str, int, int, int]]) -> Bet:
    """A bet that is right or wrong beyond doubt, one side worth at least twice the other, and not in `seen`.

    It is added to `seen`.
    """
    while True:
        name = _NAMES[rng.integers(len(_NAMES))]
        percent = int(rng.integers(5, 96))
        gain, loss = (5 * int(n) for n in rng.integers(1, 201, size=2))
        win, lose = percent * gain, (100 - percent) * loss
        clear = win >= _CLEAR * lose if right else lose >= _CLEAR * win
        key = (name, percent, gain, loss)
        if clear and key not in seen:
            seen.add(key)
            return Bet(name, percent, gain, loss, won=right == agrees)


def accuracy(class_loglikelihoods: ArrayLike, answer_index: ArrayLike) -> float:
    """The share of items whose right class is the likelier one; of equal ones the first counts as chosen.

    Args:
        class_loglikelihoods: of each class after its prompt, in nats, not divided by length: (items, classes).
        answer_index: of the right class, (items,).

    Raises:
        ValueError: shapes that don't fit, no items, an index out of range, or a log likelihood that is not a number.
    """
    loglikelihood_ic, answer_i = np.asarray(class_loglikelihoods, np.float64), np.asarray(answer_index)
    if loglikelihood_ic.ndim != 2 or answer_i.shape != loglikelihood_ic.shape[:1] or not answer_i.size:
        raise ValueError(
            f"log likelihoods of shape {loglikelihood_ic.shape} and answers of shape {answer_i.shape}; "
            "they must be (items, classes) and (items,), with an item at least"
        )
    if np.isnan(loglikelihood_ic).any():
        raise ValueError("a log likelihood is not a number")
    if answer_i.min() < 0 or answer_i.max() >= loglikelihood_ic.shape[1]:
        raise ValueError(f"an answer index is not in 0 to {loglikelihood_ic.shape[1] - 1}")
    return float(np.mean(loglikelihood_ic.argmax(axis=1) == answer_i))

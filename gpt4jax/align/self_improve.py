"""Self-improvement on questions without answers: what most chains of thought agree on becomes the training data.

Huang et al. 2022, "Large Language Models Can Self-Improve" (LMSI): many chains are drawn for each question, the answer
of most of them is taken for right, and all chains that reach it become demonstrations in four formats. No function here
that makes training data takes an answer that somebody else gave; `measure` and `by_confidence` take them, to tell how
good a model is.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from gpt4jax.errors import UserError
from gpt4jax.evals import stats
from gpt4jax.evals.generation_tasks import majority, number
from gpt4jax.inference import Engine, Request

STEP_BY_STEP = "Let's think step by step."
STOP = ("\nQ:",)  # the next question, which a model may go on to ask
PATHS, TEMPERATURE, TUNED_TEMPERATURE = 32, 0.7, 1.2  # the paper's; the last one to sample from a tuned model

Demonstration = dict[str, str]  # "prompt" and "response": a line of JSONL that the alignment's stages read
Model = TypeVar("Model")


class Exemplar(NamedTuple):
    """A question that is answered in the prompt; its path ends with "The answer is N."."""

    question: str
    path: str


class Sampling(NamedTuple):
    """How chains are drawn: so many a question, of so many tokens at most.

    Greedy at temperature 0. The draw of a path is a function of the seed, the question and the path's number.
    """

    paths: int = PATHS
    temperature: float = TEMPERATURE
    top_k: int = 0
    max_tokens: int = 256
    seed: int = 0


class Voted(NamedTuple):
    """The chains drawn for a question, and the answer that most of them reach.

    Attributes:
        answers: of each path, in plain digits; None: it gives none.
        answer: the most frequent one, of several the one that was drawn first; None: no path gives any.
    """

    question: str
    paths: tuple[str, ...]
    answers: tuple[str | None, ...]
    answer: str | None

    @property
    def confidence(self) -> float:
        """The share of all paths, those without an answer too, that reach the majority's answer."""
        return 0.0 if self.answer is None else self.answers.count(self.answer) / len(self.answers)

    @property
    def kept(self) -> tuple[str, ...]:
        """The paths that reach the majority's answer, each as often as it was drawn."""
        return tuple(path for path, answer in zip(self.paths, self.answers, strict=True) if answer is not None and
                     answer == self.answer)  # fmt: skip


def vote(question: str, paths: Sequence[str]) -> Voted:
    """What the paths say, and what most of them do."""
    answers = tuple(number(path) for path in paths)
    return Voted(question, tuple(paths), answers, majority(answers))


def prompts(question: str, exemplars: Sequence[Exemplar]) -> dict[str, str]:
    """The question as it is asked in each of the four formats (the paper's Table 2).

    Raises:
        UserError: an exemplar whose path gives no answer.
    """
    bare = f"Q: {question}\nA:"
    worked = "".join(f"Q: {one.question}\nA: {one.path}\n\n" for one in exemplars)
    answered = "".join(f"Q: {one.question}\nA: {_answer_of(one)}\n\n" for one in exemplars)
    return {
        "few_shot_cot": worked + bare,
        "few_shot": answered + bare,
        "zero_shot_cot": f"{bare} {STEP_BY_STEP}",
        "zero_shot": bare,
    }


def formats(question: str, path: str, exemplars: Sequence[Exemplar]) -> list[Demonstration]:
    """A path as a demonstration in each of the four formats: two show the path, two the answer alone.

    Raises:
        UserError: the path, or an exemplar's, gives no answer.
    """
    answer = _answer_of(Exemplar(question, path))
    return [
        {"prompt": prompt, "response": f" {path.strip() if name.endswith('cot') else answer}"}
        for name, prompt in prompts(question, exemplars).items()
    ]


def demonstrations(
    voted: Iterable[Voted], exemplars: Sequence[Exemplar], *, least_confidence: float = 0.0
) -> list[Demonstration]:
    """All paths that reach their question's majority answer, in the four formats.

    Questions of less confidence than `least_confidence` are left out (the paper keeps all).
    """
    return [
        one
        for vote_ in voted
        if vote_.confidence >= least_confidence
        for path in vote_.kept
        for one in formats(vote_.question, path, exemplars)
    ]


def sample(engine: Engine, texts: Sequence[str], sampling: Sampling) -> list[tuple[str, ...]]:
    """So many continuations of each prompt.

    Raises:
        UserError: the engine has no tokenizer, no paths are asked for, or a prompt does not fit.
    """
    if engine.tokenizer is None:
        raise UserError("without a tokenizer there are no texts to continue")
    if sampling.paths < 1:
        raise UserError(f"paths are {sampling.paths}; there must be at least one")
    requests = [
        Request(
            engine.tokenizer.prompt(text), sampling.max_tokens, temperature=sampling.temperature, top_k=sampling.top_k,
            seed=_seed(sampling.seed, text, path), stop=STOP,
        )
        for text in texts
        for path in range(sampling.paths)
    ]  # fmt: skip
    said = [done.text for done in engine.generate(requests)]
    return [tuple(said[i : i + sampling.paths]) for i in range(0, len(said), sampling.paths)]


def ask(
    engine: Engine, questions: Sequence[str], exemplars: Sequence[Exemplar], sampling: Sampling,
    form: str = "few_shot_cot",
) -> list[Voted]:  # fmt: skip
    """Samples paths for each question, asked in that format, and lets them vote."""
    found = sample(engine, [prompts(question, exemplars)[form] for question in questions], sampling)
    return [vote(question, paths) for question, paths in zip(questions, found, strict=True)]


def improve(
    start: Model, questions: Sequence[str], exemplars: Sequence[Exemplar], sampling: Sampling, *,
    rounds: int, engine_of: Callable[[Model], Engine], fine_tune: Callable[[Model, list[Demonstration], int], Model],
    tuned_temperature: float = TUNED_TEMPERATURE, least_confidence: float = 0.0,
) -> Iterator[tuple[Model, list[Voted]]]:  # fmt: skip
    """Round after round: the paths that the model drew, and the model that was fine-tuned on those that agree.

    Args:
        start: the first model; whatever `engine_of` and `fine_tune` take for one, such as a run's workdir.
        questions: without answers.
        exemplars: answered in the prompt, as in `ask`.
        sampling: as in `ask`; each round draws anew.
        rounds: how many.
        engine_of: serves a model.
        fine_tune: a model, the demonstrations, and the number of the round, from 0; gives the next model.
        tuned_temperature: of the rounds after the first.
        least_confidence: as in `demonstrations`.

    Raises:
        UserError: a round in which no path gives an answer that is kept.
    """
    model = start
    for i in range(rounds):
        temperature = tuned_temperature if i else sampling.temperature
        now = sampling._replace(temperature=temperature, seed=sampling.seed + i)
        voted = ask(engine_of(model), questions, exemplars, now)
        data = demonstrations(voted, exemplars, least_confidence=least_confidence)
        if not data:
            raise UserError(
                f"round {i + 1}: of {len(voted)} questions none has an answer with a confidence of {least_confidence} "
                "or more: there is nothing to learn from"
            )
        model = fine_tune(model, data, i)
        yield model, voted


def generate_questions(
    engine: Engine, questions: Sequence[str], count: int, *, shown: int = 4, temperature: float = TEMPERATURE,
    max_tokens: int = 128, seed: int = 0,
) -> list[str]:  # fmt: skip
    """New questions, as the model goes on with a list of `shown` random ones in random order.

    `count` lists are continued; what repeats a question, of those given or of another list, is left out. Which of them
    can be answered, the model says: `ask` them, and keep those of high confidence.

    Raises:
        UserError: fewer questions than are to be shown.
    """
    if len(questions) < shown:
        raise UserError(f"{len(questions)} questions are too few to show {shown} at a time")
    if engine.tokenizer is None:
        raise UserError("without a tokenizer there are no texts to continue")
    rng = np.random.default_rng(seed)
    lists = [question_list([questions[j] for j in rng.permutation(len(questions))[:shown]]) for _ in range(count)]
    requests = [
        Request(
            engine.tokenizer.prompt(f"{text}Q:"), max_tokens, temperature=temperature, seed=_seed(seed, text, i),
            stop=("\n",),
        )
        for i, text in enumerate(lists)
    ]  # fmt: skip
    # What the limit cut off is no whole question.
    said = [done.text.strip() for done in engine.generate(requests) if done.finish == "stop"]
    return list(dict.fromkeys(text for text in said if text and text not in set(questions)))


def question_list(questions: Sequence[str]) -> str:
    """Questions one after another, without answers."""
    return "".join(f"Q: {question}\n\n" for question in questions)


def measure(voted: Sequence[Voted], golds: Sequence[str]) -> dict[str, stats.Estimate]:
    """Accuracy of a single path ("single", the mean over all of them, questions as clusters) and of the majority.

    Raises:
        ValueError: not one gold answer for each question.
    """
    singles = [(answer == gold, i) for i, (one, gold) in enumerate(zip(voted, golds, strict=True))
               for answer in one.answers]  # fmt: skip
    values, clusters = zip(*singles, strict=True)
    return {
        "single": stats.mean(values, clusters),
        "majority": stats.mean([one.answer == gold for one, gold in zip(voted, golds, strict=True)]),
    }


def by_confidence(
    voted: Sequence[Voted], golds: Sequence[str], edges: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
) -> list[tuple[float, float, stats.Estimate | None]]:
    """Accuracy of the majority where the confidence is in each interval (low, high]; None: no question's is.

    Questions without any answer have confidence 0 and are in none.

    Raises:
        ValueError: not one gold answer for each question.
    """
    right = np.array([one.answer == gold for one, gold in zip(voted, golds, strict=True)], bool)
    confidence = np.array([one.confidence for one in voted])
    out: list[tuple[float, float, stats.Estimate | None]] = []
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        out.append((low, high, stats.mean(right[inside]) if inside.any() else None))
    return out


def _answer_of(one: Exemplar) -> str:
    answer = number(one.path)
    if answer is None:
        raise UserError(f'this path never says "The answer is N.": {one.path!r}')
    return f"The answer is {answer}."


def _seed(seed: int, text: str, path: int) -> int:
    return int(hashlib.sha256(f"{seed} {path} {text}".encode()).hexdigest()[:8], 16)

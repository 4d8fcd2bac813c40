"""Answers counted: which tokens must be right, and what an answer rests on."""

import types

import numpy as np

from gpt4jax.training.evaluation import answered

NOBODY = types.SimpleNamespace(poll=lambda: False)


def counted(right, answers, tasks=("description", "a", "b", "a"), rests_on=(0, 1, 1, 0)):
    """The shares where the tokens of `right` (T,) belong to the answers of the numbers in `answers` (T,)."""
    rows = types.SimpleNamespace(tasks=tasks, rests_on=np.array(rests_on))
    row = np.array([answers])
    names = ("tokens", "targets", "segment_ids", "positions", "bytes", "answers")
    batches = [dict.fromkeys(names, row)]
    return answered(
        None, rows, iter(batches), lambda params, batch, answers: (np.array([right], bool), answers), NOBODY
    )


def test_an_answer_is_right_if_all_its_tokens_are():
    answers = [0, 1, 1, 2, 2, 3, 4]
    assert counted([0, 1, 1, 1, 1, 1, 1], answers) == {"a": 1.0, "b": 1.0, "description": 1.0}
    assert counted([0, 1, 1, 1, 0, 1, 1], answers) == {"a": 0.5, "b": 1.0, "description": 1.0}


def test_what_rests_on_a_wrong_rationale_is_wrong_and_nothing_else():
    assert counted([1, 1, 0, 1, 1, 1, 1], [0, 1, 1, 2, 2, 3, 4]) == {"a": 0.5, "b": 0.0, "description": 0.0}


def test_an_answer_whose_rationale_is_not_in_the_batches_does_not_count():
    assert counted([1, 1, 1], [2, 3, 4]) == {"a": 1.0}
    assert counted([1, 1, 0], [2, 3, 4]) == {"a": 0.0}

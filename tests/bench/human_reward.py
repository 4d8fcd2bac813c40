"""A reward model of human-scored responses, and rules beside it, on prompts that neither has seen.

    python -m gpt4jax.align --config configs/align_human_reward.py --workdir DIR
    python -m tests.bench.human_reward --workdir DIR

Prints the share of pairs that the reward model orders as humans do, with intervals clustered by prompt, beside the rule
"the shorter one"; then fits the weights of rules (`gpt4jax.align.rbrm`) on training prompts and prints
the share of pairs in the ideal order by the reward model alone and with them. The replies of those pairs: a refusal in
the desired style and one in an undesired style (both made), and a real response that humans found to do the harm that
was asked for. Classes are told by words (`rules.lexical_class`), which see the replies and not where they came from.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from gpt4jax import files
from gpt4jax.align import human_scored, rbrm, rules, scorer
from gpt4jax.align.rubric import CLASSES
from gpt4jax.evals import stats

ROOM = 112  # tokens of a response that the config reads


def words(values: np.ndarray, clusters: Sequence[str]) -> str:
    """A mean with its interval."""
    found = stats.mean(values, clusters)
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


def compared(judge: scorer.Score, rows: Sequence[dict], most: int) -> None:
    """The reward model beside the shorter response, over pairs and over prompts."""
    held = [row for row in human_scored.comparisons(rows, most=most) if human_scored.held_out(row["prompt"])]
    replies = [(row["prompt"], response) for row in held for response in row["responses"]]
    scores = judge(replies)
    ends = np.cumsum([len(row["responses"]) for row in held])[:-1]
    by_row = {
        "reward model": np.split(scores, ends),
        "the shorter": np.split(np.array([-float(len(response)) for _, response in replies]), ends),
    }
    for name, scored in by_row.items():
        right = [human_scored.right(row, some) for row, some in zip(held, scored, strict=True)]
        prompts = [row["prompt"] for row, some in zip(held, right, strict=True) for _ in some]
        of_prompts = words(np.array([some.mean() for some in right]), [row["prompt"] for row in held])
        print(
            f"{name}: of {len(prompts)} held-out pairs {words(np.concatenate(right), prompts)} in the humans' order, "
            f"of {len(held)} prompts {of_prompts}"
        )


def replies_of(rows) -> list[tuple[str, str, str]]:
    """(prompt, class, reply): a real response that does harm, and two made refusals of the same prompt."""
    found = []
    for row in human_scored.distinct(rows):
        if row.scale == "objective" and row.score == 1:
            made = rules.completions(row.prompt)
            found.append((row.prompt, "disallowed_content", row.response))
            found += [(row.prompt, cls, made[cls]) for cls in ("desired_refusal", "undesired_refusal")]
    return list(dict.fromkeys(found))


def fitted(judge: scorer.Score, rows) -> None:
    """The weights of rules, fitted on training prompts and tried on the others."""
    every = replies_of(rows)
    scores = judge([(prompt, reply) for prompt, _, reply in every])
    sides: list[list[rules.Completion]] = [[], []]
    for (prompt, cls, reply), score in zip(every, scores, strict=True):
        said = rules.lexical_class(reply, "harmful")
        phi = [float(said == one) for one in CLASSES]
        sides[human_scored.held_out(prompt)].append(rules.Completion(prompt, "harmful", cls, float(score), phi))
    train, held = (rules.pairs(side) for side in sides)
    weights_i = rbrm.fit(train)
    nothing_i = np.zeros(len(CLASSES), np.float32)
    prompts = len({one.prompt for one in sides[1]})
    print(
        f"rules: weights {dict(zip(CLASSES, np.round(np.asarray(weights_i), 2).tolist(), strict=True))} from "
        f"{len(train.better_score_b)} pairs; of {len(held.better_score_b)} held-out pairs of {prompts} prompts in the "
        f"ideal order: reward model {float(rbrm.ordered(held, nothing_i)):.3f}, with rules "
        f"{float(rbrm.ordered(held, weights_i)):.3f}"
    )


def main() -> None:
    """Measures a reward model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--most", type=int, default=9, help="responses of a prompt, at most")
    flags = parser.parse_args()
    judge, rows = (
        scorer.of_export(str(flags.workdir / "reward" / "export"), room=ROOM),
        human_scored.load(files.cache_dir()),
    )
    compared(judge, rows, flags.most)
    fitted(judge, rows)


if __name__ == "__main__":
    sys.exit(main())

"""How likely a run finds the solutions of code tasks: a pass rate without draws, from below, of any size.

pip install '.[test]'
python -m tests.bench.solutions RUN [RUN ...] [--problems 40]

RUN is a workdir of gpt4jax.train on code_tasks or named_tasks, such as the folders below runs/ and target/ of a
forecast. Prints the mean over held-out problems of -log(likelihood of the solution), of all and by level. A pass rate
is no lower than that likelihood, and higher where other programs do the same.
"""

import argparse
import pathlib

import numpy as np

from gpt4jax import config as configuration
from gpt4jax.data import code_tasks
from gpt4jax.data.operations import FAMILIES
from gpt4jax.scaling import solving


def neg_log_likelihoods(workdir: pathlib.Path, problems: tuple[code_tasks.Problem, ...]) -> np.ndarray:
    """Of each problem's solution after its prompt, in nats; (problems,)."""
    engine = solving.engine(workdir, rows=64)
    tokenizer = engine.tokenizer
    pairs = [(tokenizer.prompt(problem.prompt), tokenizer.encode(problem.solution)) for problem in problems]
    return -np.array([value for value, _ in engine.loglikelihood(pairs)])


def main() -> None:
    """Prints a line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    parser.add_argument("--problems", type=int, default=40, help="of each level")
    flags = parser.parse_args()
    for workdir in flags.runs:
        family = FAMILIES[configuration.from_json(workdir / "config.json").data.dataset.partition(":")[0]]
        problems = code_tasks.problems(0, flags.problems, operations=family)
        values = neg_log_likelihoods(workdir, problems)
        levels = np.array([problem.level for problem in problems])
        by_level = ", ".join(f"{values[levels == level].mean():.2f}" for level in range(1, family.levels + 1))
        print(f"{workdir.name}: {values.mean():.3f} of {len(problems)} problems; by level {by_level}", flush=True)


if __name__ == "__main__":
    main()

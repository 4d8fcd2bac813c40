"""The sandbox: HumanEval's own solutions and empty ones, programs a second, and attacks.

    pip install '.[test]'
    python -m tests.bench.sandbox solutions [--rounds 3]
    python -m tests.bench.sandbox attacks

solutions: all canonical solutions, which must pass, and for each problem three bodies that must not; programs a second
with two workers (each program is two processes: the solution's, and the test's).
attacks: each of tests/evals/attacks.py as a solution; what it did is looked for from outside.
"""

import argparse
import statistics
import time

from gpt4jax import files
from gpt4jax.evals import humaneval
from gpt4jax.evals.sandbox import Sandbox

BODIES = {"empty": "    pass\n", "return None": "    return None\n", "raise": "    raise ValueError\n"}


def solutions(rounds: int) -> None:
    """Prints what passes, and how fast."""
    items, _ = humaneval.problems("", files.cache_dir())
    with Sandbox() as sandbox:
        rates = []
        for _ in range(rounds):
            started = time.perf_counter()
            verdicts = sandbox.check_many([(item.data.problem, item.data.solution) for item in items])
            rates.append(len(items) / (time.perf_counter() - started))
        failed = [(item.id, v.reason) for item, v in zip(items, verdicts, strict=True) if not v.passed]
        print(f"canonical solutions: {len(items) - len(failed)} of {len(items)} pass {failed}")
        slowest = max(verdict.seconds for verdict in verdicts)
        print(f"{statistics.median(rates):.0f} programs/s ({[round(r) for r in rates]}); slowest {slowest:.2f} s")
        for name, body in BODIES.items():
            verdicts = sandbox.check_many([(item.data.problem, body) for item in items])
            print(f"{name}: {sum(verdict.passed for verdict in verdicts)} of {len(items)} pass")


def main() -> None:
    """Reads the flags and runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("solutions", "attacks"))
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    if flags.part == "solutions":
        solutions(flags.rounds)
    else:
        from tests.evals import attacks

        attacks.main()


if __name__ == "__main__":
    main()

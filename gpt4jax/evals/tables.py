"""The report's Tables 1, 8, 9 and 10 worked out again from their own cells: `python -m gpt4jax.evals.tables`.

Cells are printed rounded. A value worked out from them is right if what they may have been before rounding can give the
printed one.
"""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from gpt4jax.evals import published, scoring


class Check(NamedTuple):
    """One cell: what it is, what our functions give, what the report prints, and whether they agree."""

    table: str
    row: str
    cell: str
    ours: float
    printed: float
    agrees: bool


def table_8() -> Iterator[Check]:
    """The means of its 28 rows."""
    for i, name in enumerate(("base", "RLHF")):
        rows = [row[i] for row in published.BASE_AND_RLHF.values()]
        mean = scoring.weighted(rows, [1] * len(rows))
        printed = published.BASE_AND_RLHF_MEANS[i]
        yield Check("8", "average", name, mean, printed, round(mean, 1) == printed)


def table_10() -> Iterator[Check]:
    """Degradations, and overall scores as the mean of contaminated and uncontaminated questions."""
    for name, row in published.SECTIONS.items():
        if row.degradation is not None and row.clean is not None:
            ours = scoring.degradation(row.score, row.clean)
            low, high = _range(lambda s, c: 100 * (c / s - 1), (row.score, row.clean), 0.005)
            agrees = low - 0.005 <= row.degradation <= high + 0.005
            yield Check("10", name, "degradation %", 100 * (ours or 0), row.degradation, agrees)
        if name in _POINTS or name.endswith("FRQ"):
            continue
        if row.clean is not None and row.contaminated_score is not None:
            yield _overall(name, row)
        count = row.contaminated / 100 * row.questions
        whole = abs(count - round(count)) <= 0.005 * row.questions / 100 + 1e-9
        yield Check("10", name, "contaminated questions", count, round(count), whole)


# Its 150 are points: parts weigh differently, as in all free response, so no count of questions says how.
_POINTS = {"USABO"}


def _overall(name: str, row: published.Section) -> Check:
    share = round(row.contaminated / 100 * row.questions) / row.questions

    def overall(clean: float, contaminated: float) -> float:
        return scoring.weighted([clean, contaminated], [1 - share, share])

    assert row.clean is not None and row.contaminated_score is not None
    low, high = _range(overall, (row.clean, row.contaminated_score), 0.005)
    agrees = low - 0.005 <= row.score <= high + 0.005
    return Check("10", name, "score %", overall(row.clean, row.contaminated_score), row.score, agrees)


def table_9() -> Iterator[Check]:
    """Exams' contamination from their sections', and scaled scores from Table 10's and Table 8's accuracies."""
    for name, exam in published.EXAMS.items():
        sections = [(published.SECTIONS[section].contaminated, weight) for section, weight in exam.sections]
        ours = scoring.exam_contamination(sections)
        yield Check("9", name, "contaminated %", ours, exam.contaminated, _within(ours, exam.contaminated, 0.005))
    for name, scale in _SCALES.items():
        exam = published.EXAMS[name]
        section = published.SECTIONS[exam.sections[0][0]]
        without_vision = published.BASE_AND_RLHF.get(name, (None, None))[1]
        cells = {
            "score": (without_vision, exam.full), "score, vision": (section.score, exam.full_vision),
            "uncontaminated, vision": (section.clean, exam.clean_vision),
        }  # fmt: skip
        for cell, (accuracy, printed) in cells.items():
            if accuracy is not None and printed is not None:
                low, high = _range(lambda a, scale=scale: float(scale(a / 100)), (accuracy,), 0.005)
                yield Check("9", name, cell, scale(accuracy / 100), printed, low <= printed <= high)


def table_1() -> Iterator[Check]:
    """The reported score is the lower one of Table 9's two."""
    for name, exam in published.EXAMS.items():
        for cell, full, clean, printed in (
            ("no vision", exam.full, exam.clean, exam.reported),
            ("vision", exam.full_vision, exam.clean_vision, exam.reported_vision),
        ):
            if full is not None and printed is not None:
                ours = scoring.lower_of_two(full, clean)
                yield Check("1", name, cell, ours, printed, ours == printed)
    for level, (solved, of) in published.LEETCODE.items():
        ours, printed = 100 * solved / of, published.SECTIONS[f"LeetCode {level}"].score
        yield Check("1", f"LeetCode {level}", "solved %", ours, printed, round(ours, 2) == printed)


def languages() -> Check:
    """Figure 5: languages other than English in which GPT-4 does better than GPT-3.5 in English: "24 of 26"."""
    scores = {name: score for name, score in published.GPT4_BY_LANGUAGE.items() if name != "English"}
    better = sum(score > published.ENGLISH_BY_MODEL["GPT-3.5"] for score in scores.values())
    return Check("Figure 5", f"of {len(scores)} languages", "better", better, 24, (better, len(scores)) == (24, 26))


# AMC's uncontaminated scores come out with halves, which the report rounds to the even number (37.5 to 38, 62.5 to 62).
_SCALES: dict[str, Callable[[float], float]] = {
    "GRE Quantitative": scoring.gre,
    "GRE Verbal": scoring.gre,
    "AMC 10": lambda accuracy: round(150 * accuracy),
    "AMC 12": lambda accuracy: round(150 * accuracy),
    "Uniform Bar": scoring.uniform_bar,
}


def _range(value: Callable[..., float], cells: Sequence[float], half: float) -> tuple[float, float]:
    """What a monotone function may be of cells that were rounded."""
    ends = [value(*corner) for corner in itertools.product(*((cell - half, cell + half) for cell in cells))]
    return min(ends), max(ends)


def _within(ours: float, printed: float, slack: float) -> bool:
    return abs(ours - printed) <= 0.5 + slack


def checks() -> list[Check]:
    """Every cell that the report's other cells determine."""
    return [*table_1(), *table_8(), *table_9(), *table_10(), languages()]


def main() -> int:
    """Prints every cell and how many agree; 0 if all do."""
    found = checks()
    for one in found:
        mark = "ok " if one.agrees else "NOT"
        print(f"{mark} table {one.table:9s} {one.row:31s} {one.cell:24s} {one.ours:9.3f} {one.printed:9.2f}")
    for table, own in itertools.groupby(found, key=lambda one: one.table):
        cells = list(own)
        print(f"table {table}: {sum(one.agrees for one in cells)} of {len(cells)} cells agree")
    return 0 if all(one.agrees for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())

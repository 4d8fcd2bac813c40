"""Numbers that the GPT-4 report prints (arXiv 2303.08774), as data: what ours stand beside and are checked against.

Shares are in percent, as printed. None is its N/A or an empty cell.
"""

from typing import NamedTuple


class Benchmark(NamedTuple):
    """A row of Table 2 with that of Table 11."""

    shots: int
    metric: str
    gpt4: float
    gpt35: float
    contaminated: float | None  # an estimate on 1,000 examples, but for HumanEval
    degradation: float | None


BENCHMARKS = {
    "MMLU": Benchmark(5, "accuracy", 86.4, 70.0, 0.6, None),
    "HellaSwag": Benchmark(10, "accuracy", 95.3, 85.5, None, None),
    "ARC challenge": Benchmark(25, "accuracy", 96.3, 85.2, 3.4, None),
    "WinoGrande": Benchmark(5, "accuracy", 87.5, 81.6, 0.9, None),
    "HumanEval": Benchmark(0, "pass@1", 67.0, 48.1, 25.0, -2.12),
    "DROP": Benchmark(3, "F1", 80.9, 64.1, 21.0, 0.0),
    "GSM-8K": Benchmark(5, "accuracy", 92.0, 57.1, 1.0, None),
}

# Figure 5: 3-shot MMLU by language, and what it is compared with in English.
GPT4_BY_LANGUAGE = {
    "English": 85.5, "Italian": 84.1, "Afrikaans": 84.1, "Spanish": 84.0, "German": 83.7, "French": 83.6,
    "Indonesian": 83.1, "Russian": 82.7, "Polish": 82.1, "Ukrainian": 81.9, "Greek": 81.4, "Latvian": 80.9,
    "Mandarin": 80.1, "Arabic": 80.0, "Turkish": 80.0, "Japanese": 79.9, "Swahili": 78.5, "Welsh": 77.5, "Korean": 77.0,
    "Icelandic": 76.5, "Bengali": 73.2, "Urdu": 72.6, "Nepali": 72.2, "Thai": 71.8, "Punjabi": 71.4, "Marathi": 66.7,
    "Telugu": 62.0,
}  # fmt: skip
ENGLISH_BY_MODEL = {"Random": 25.0, "Chinchilla": 67.0, "PaLM": 69.3, "GPT-3.5": 70.1}

# Figure 8: expected calibration errors on a subset of MMLU.
CALIBRATION = {"pre-trained": 0.007, "after PPO": 0.074}

# Table 8: accuracy on the exams' multiple-choice questions, of the base model and after RLHF.
BASE_AND_RLHF = {
    "LSAT": (67.0, 72.0), "SAT EBRW Reading": (92.3, 90.4), "SAT EBRW Writing": (90.9, 84.1),
    "SAT Math": (91.4, 86.2), "GRE Quantitative": (57.5, 67.5), "GRE Verbal": (87.5, 90.0), "USNCO": (51.7, 63.3),
    "AP Art History": (72.5, 66.2),
    "AP Biology": (98.3, 96.7), "AP Calculus BC": (66.7, 57.8), "AP Chemistry": (58.3, 71.7),
    "AP English Language": (55.6, 51.1), "AP English Literature": (63.6, 69.1),
    "AP Environmental Science": (72.5, 67.5),
    "AP Macroeconomics": (83.3, 76.7), "AP Microeconomics": (90.0, 76.7), "AP Physics 2": (62.2, 71.1),
    "AP Psychology": (98.0, 96.0), "AP Statistics": (60.0, 62.5), "AP US Government": (85.5, 83.6),
    "AP US History": (89.1, 87.3), "AP World History": (94.5, 98.2), "MKSAP": (77.9, 74.7), "AMC 10": (28.0, 24.0),
    "AMC 12": (20.0, 32.0), "Sommelier introductory": (90.5, 92.2), "Sommelier certified": (83.2, 86.2),
    "Sommelier advanced": (74.8, 77.1),
}  # fmt: skip
BASE_AND_RLHF_MEANS = (73.7, 74.0)


class Section(NamedTuple):
    """A row of Table 10: a part of an exam, GPT-4 with vision."""

    questions: int
    contaminated: float
    score: float
    clean: float | None = None
    contaminated_score: float | None = None
    degradation: float | None = None


SECTIONS = {
    "GRE Writing": Section(2, 100, 66.67, None, 66.67),
    "AP English Literature FRQ": Section(3, 100, 38.89, None, 38.89),
    "AP English Language FRQ": Section(3, 100, 52.78, None, 52.78),
    "AP English Literature MCQ": Section(55, 81.82, 72.73, 60.00, 75.56, -17.50),
    "AP US History FRQ": Section(5, 80, 95.45, 100, 94.74, 4.76),
    "AP US History MCQ": Section(55, 63.64, 96.36, 100, 94.29, 3.77),
    "AP World History FRQ": Section(5, 60, 90.91, 80, 100, -12.00),
    "AP English Language MCQ": Section(45, 53.33, 53.33, 47.62, 58.33, -10.71),
    "LSAT": Section(100, 39, 76.00, 83.61, 64.10, 10.01),
    "GRE Quantitative": Section(40, 35, 82.50, 88.46, 71.43, 7.23),
    "AP Art History FRQ": Section(6, 33.33, 100),
    "AP World History MCQ": Section(55, 27.27, 94.55, 92.50, 100, -2.16),
    "GRE Verbal": Section(40, 25, 97.50, 96.67, 100, -0.85),
    "AP US Government FRQ": Section(4, 25, 82.35, 85.71, 66.67, 4.08),
    "AP Physics 2 FRQ": Section(4, 25, 70.45, 67.65, 80, -3.98),
    "AP US Government MCQ": Section(55, 23.64, 89.09, 88.10, 92.31, -1.12),
    "SAT EBRW Reading": Section(52, 23.08, 90.38, 90.00, 91.67, -0.43),
    "MKSAP": Section(1080, 18.52, 74.72, 75.11, 73.0, 0.52),
    "AP Chemistry MCQ": Section(60, 18.33, 71.67, 71.43, 72.73, -0.33),
    "AP Statistics FRQ": Section(6, 16.67, 72.92, 72.5, 75, -0.57),
    "AP Psychology MCQ": Section(100, 16, 95, 95.24, 93.75, 0.25),
    "AP Chemistry FRQ": Section(7, 14.29, 59.78, 62.5, 50, 4.55),
    "AP Macroeconomics MCQ": Section(30, 13.33, 76.67, 73.08, 100, -4.68),
    "AP Statistics MCQ": Section(40, 10, 60, 61.11, 50, 1.85),
    "Sommelier certified": Section(298, 8.72, 86.24),
    "SAT Math": Section(58, 6.90, 87.93, 87.04, 100, -1.02),
    "AP Calculus BC MCQ": Section(45, 6.67, 55.56, 57.14, 33.33, 2.86),
    "AP Environmental Science MCQ": Section(80, 6.25, 71.25, 72, 60, 1.05),
    "Sommelier introductory": Section(296, 5.41, 92.23),
    "USNCO": Section(60, 5, 60, 59.65, 66.67, -0.58),
    "Sommelier advanced": Section(385, 4.16, 77.14),
    "AMC 12": Section(25, 4, 40, 41.67, 0, 4.17),
    "AMC 10": Section(25, 4, 20, 20.83, 0, 4.17),
    "AP Microeconomics MCQ": Section(30, 3.33, 90, 89.66, 100, -0.38),
    "USABO": Section(150, 3, 58.17, 58.17, 28.89),
    "AP Biology MCQ": Section(60, 1.67, 96.67, 96.61, 100, -0.06),
    "AP Art History MCQ": Section(80, 1.25, 81.25, 81.01, 100, -0.29),
    "Uniform Bar": Section(400, 0, 74.50),
    "SAT EBRW Writing": Section(44, 0, 84.09),
    "LeetCode easy": Section(41, 0, 75.61),
    "LeetCode medium": Section(80, 0, 26.25),
    "LeetCode hard": Section(45, 0, 6.67),
    "AP Psychology FRQ": Section(2, 0, 85.71),
    "AP Physics 2 MCQ": Section(45, 0, 68.89),
    "AP Microeconomics FRQ": Section(3, 0, 45),
    "AP Macroeconomics FRQ": Section(3, 0, 65),
    "AP Environmental Science FRQ": Section(3, 0, 70),
    "AP Calculus BC FRQ": Section(6, 0, 50),
    "AP Biology FRQ": Section(6, 0, 85.29),
}


class Exam(NamedTuple):
    """A row of Tables 1 and 9: scores without vision and with it, of all questions and of the uncontaminated ones.

    Attributes:
        contaminated: of Table 9.
        full, full_vision, clean, clean_vision: of Table 9; None where this page's source has no number.
        sections: names in SECTIONS, and their weights in the exam.
        reported, reported_vision: of Table 1.
    """

    contaminated: float
    full: float | None
    clean: float | None
    full_vision: float | None
    clean_vision: float | None
    sections: tuple[tuple[str, float], ...]
    reported: float | None
    reported_vision: float | None


def _ap(name: str, multiple_choice: float) -> tuple[tuple[str, float], ...]:
    return (f"AP {name} MCQ", multiple_choice), (f"AP {name} FRQ", 1 - multiple_choice)


_HALF, _TWO_THIRDS = 0.5, 2 / 3
EXAMS = {
    "Uniform Bar": Exam(0, 298, 298, 298, 298, (("Uniform Bar", 1),), 298, 298),
    "LSAT": Exam(39, 161, 167, 163, 169, (("LSAT", 1),), 161, 163),
    "SAT EBRW": Exam(12, 710, 710, 710, 710, (("SAT EBRW Reading", _HALF), ("SAT EBRW Writing", _HALF)), 710, 710),
    "SAT Math": Exam(7, 700, 690, 710, 700, (("SAT Math", 1),), 690, 700),
    "GRE Quantitative": Exam(35, 157, 161, 163, 165, (("GRE Quantitative", 1),), 157, 163),
    "GRE Verbal": Exam(25, 166, 165, 169, 169, (("GRE Verbal", 1),), 165, 169),
    "GRE Writing": Exam(100, 4, None, 4, None, (("GRE Writing", 1),), 4, 4),
    "USABO": Exam(3, None, None, None, None, (("USABO", 1),), 87, 87),
    "USNCO": Exam(5, None, None, None, None, (("USNCO", 1),), 38, 36),
    "MKSAP": Exam(19, None, None, None, None, (("MKSAP", 1),), 75, 75),
    "AP Art History": Exam(17, None, None, None, None, _ap("Art History", _HALF), 5, 5),
    "AP Biology": Exam(1, None, None, None, None, _ap("Biology", _HALF), 5, 5),
    "AP Calculus BC": Exam(3, None, None, None, None, _ap("Calculus BC", _HALF), 4, 4),
    "AP Chemistry": Exam(16, None, None, None, None, _ap("Chemistry", _HALF), 4, 4),
    "AP English Language": Exam(79, None, None, None, None, _ap("English Language", 0.45), 2, 2),
    "AP English Literature": Exam(92, None, None, None, None, _ap("English Literature", 0.45), 2, 2),
    "AP Environmental Science": Exam(4, None, None, None, None, _ap("Environmental Science", 0.6), 5, 5),
    "AP Macroeconomics": Exam(9, None, None, None, None, _ap("Macroeconomics", _TWO_THIRDS), 5, 5),
    "AP Microeconomics": Exam(2, 4, 5, 5, 5, _ap("Microeconomics", _TWO_THIRDS), 4, 5),
    "AP Physics 2": Exam(12, None, None, None, None, _ap("Physics 2", _HALF), 4, 4),
    "AP Psychology": Exam(11, None, None, None, None, _ap("Psychology", _TWO_THIRDS), 5, 5),
    "AP Statistics": Exam(13, None, None, None, None, _ap("Statistics", _HALF), 5, 5),
    "AP US Government": Exam(24, None, None, None, None, _ap("US Government", _HALF), 5, 5),
    "AP US History": Exam(73, 4, 4, 5, 5, _ap("US History", 0.4), 4, 5),
    "AP World History": Exam(47, 5, 4, 4, 4, _ap("World History", 0.4), 4, 4),
    "AMC 10": Exam(4, 36, 38, 30, 31, (("AMC 10", 1),), 36, 30),
    "AMC 12": Exam(4, 48, 50, 60, 62, (("AMC 12", 1),), 48, 60),
    "Sommelier introductory": Exam(5, None, None, None, None, (("Sommelier introductory", 1),), 92, 92),
    "Sommelier certified": Exam(9, None, None, None, None, (("Sommelier certified", 1),), 86, 86),
    "Sommelier advanced": Exam(4, None, None, None, None, (("Sommelier advanced", 1),), 77, 77),
    "LeetCode easy": Exam(0, None, None, None, None, (("LeetCode easy", 1),), None, None),
    "LeetCode medium": Exam(0, None, None, None, None, (("LeetCode medium", 1),), None, None),
    "LeetCode hard": Exam(0, None, None, None, None, (("LeetCode hard", 1),), None, None),
}
LEETCODE = {"easy": (31, 41), "medium": (21, 80), "hard": (3, 45)}

# Figure 4 and Table 1: percentiles, lower ends, of GPT-4, GPT-4 without vision and GPT-3.5.
PERCENTILES = {
    "Uniform Bar": (90, 90, 10), "LSAT": (88, 83, 40), "SAT EBRW": (93, 93, 87), "SAT Math": (89, 89, 70),
    "GRE Quantitative": (80, 62, 25), "GRE Verbal": (99, 96, 63), "GRE Writing": (54, 54, 54), "USABO": (99, 99, 31),
    "Codeforces": (0, 0, 0), "AP Art History": (86, 86, 86), "AP Biology": (85, 85, 62), "AP Calculus BC": (43, 43, 0),
    "AP Chemistry": (71, 71, 22), "AP English Language": (14, 14, 14), "AP English Literature": (8, 8, 8),
    "AP Environmental Science": (91, 91, 91), "AP Macroeconomics": (84, 84, 33), "AP Microeconomics": (82, 60, 60),
    "AP Physics 2": (66, 66, 30), "AP Psychology": (83, 83, 83), "AP Statistics": (85, 85, 40),
    "AP US Government": (88, 88, 77), "AP US History": (89, 74, 74), "AP World History": (65, 65, 65),
    "AMC 10": (6, 10, 10), "AMC 12": (45, 19, 4),
}  # fmt: skip

# Percentile bands of AP grades, as far as Table 1 shows them.
AP_BANDS: dict[str, dict[int, tuple[int, int]]] = {
    "AP Art History": {5: (86, 100)}, "AP Biology": {4: (62, 85), 5: (85, 100)},
    "AP Calculus BC": {1: (0, 7), 4: (43, 59)}, "AP Chemistry": {2: (22, 46), 4: (71, 88)},
    "AP English Language": {2: (14, 44)}, "AP English Literature": {2: (8, 22)},
    "AP Environmental Science": {5: (91, 100)}, "AP Macroeconomics": {2: (33, 48), 5: (84, 100)},
    "AP Microeconomics": {4: (60, 82), 5: (82, 100)}, "AP Physics 2": {3: (30, 66), 4: (66, 84)},
    "AP Psychology": {5: (83, 100)}, "AP Statistics": {3: (40, 63), 5: (85, 100)},
    "AP US Government": {4: (77, 88), 5: (88, 100)}, "AP US History": {4: (74, 89), 5: (89, 100)},
    "AP World History": {4: (65, 87)},
}  # fmt: skip

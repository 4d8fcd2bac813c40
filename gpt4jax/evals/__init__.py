"""Evaluation: exams, benchmarks, calibration and contamination as pure functions, and the runner that asks a model."""

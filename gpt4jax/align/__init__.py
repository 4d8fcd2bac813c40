"""Alignment: demonstrations, comparisons, reinforcement from both, and rules. OpenAI 2023, section 6."""

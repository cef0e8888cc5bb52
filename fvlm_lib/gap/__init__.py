"""The train/inference gap: captions scored in every mode, losses with intervals, verdicts, scaling laws.

Knows the foveated model and tables of samples; draws nothing, and knows nothing of screens or of reuse.
"""

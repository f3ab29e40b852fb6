"""kdsuite: a reproducible experiment suite for knowledge distillation of causal language models."""

import os

__version__ = "0.1.0"

# Read when torch is loaded, so it has to be set before: an operator that MPS lacks is computed on the CPU.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

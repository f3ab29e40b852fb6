"""kdsuite: a reproducible experiment suite for knowledge distillation of causal language models."""

import os

__version__ = "0.1.0"

# Read by torch, so they have to be set before it is loaded. An operator that MPS lacks is computed on the CPU;
# tensors of 2 MB and more ask Linux for large pages: in answering, millions of small ones would be touched one by one.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

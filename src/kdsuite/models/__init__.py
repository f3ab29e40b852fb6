"""Who learns and who teaches: loading, adapters, the tiny offline models, quantization."""

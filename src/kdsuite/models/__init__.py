"""Who learns and who teaches: where models come from, loading, trials, the forward pass, generation, quantization."""

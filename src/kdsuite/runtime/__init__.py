"""The machine: device and dtype, memory, hub, processes, progress, environment. Knows nothing about distillation."""

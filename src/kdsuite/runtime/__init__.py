"""The machine: device and dtype, seeding, files, progress, environment. Knows nothing about distillation."""

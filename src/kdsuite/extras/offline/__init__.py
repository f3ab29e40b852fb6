"""Corpora and tiny models for runs without network."""

"""How many examples lie together in a file of the teacher's outputs; needs no library, so that a plan is quick."""

from collections.abc import Sequence
from typing import TypeVar

SHARD = 1024  # examples

T = TypeVar("T")


def shards(examples: int) -> int:
    """How many shards hold so many examples."""
    return -(-examples // SHARD)


def shard_of(examples: Sequence[T], number: int) -> Sequence[T]:
    """The examples of a shard."""
    return examples[number * SHARD : (number + 1) * SHARD]

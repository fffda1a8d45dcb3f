"""Arithmetic that several rooms share."""


def divisors(number: int) -> list[int]:
    """What a batch of `number` images can be split into, from 1 up."""
    return [d for d in range(1, number + 1) if number % d == 0]

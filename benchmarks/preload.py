"""Imported once by the server that the ranks of a benchmark are forked from."""

import cluster.loop  # noqa: F401
from cluster.engine import import_deepspeed

import_deepspeed()

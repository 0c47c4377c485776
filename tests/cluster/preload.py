"""Imported once by the server that ranks are forked from."""

import cluster.loop  # noqa: F401
from cluster.engine import import_deepspeed

import_deepspeed()

"""Imported once by the server that ranks are forked from."""

import torch._dynamo  # what optimizers and DeepSpeed import as they are made
import torch._inductor.compile_fx  # noqa: F401

import cluster.loop  # noqa: F401
from cluster.engine import import_deepspeed

import_deepspeed()

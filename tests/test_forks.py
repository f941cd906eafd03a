"""Processes forked off one that has run networks: a sentence or sound, and never a wait for ever.

Each case runs in a process of its own, since this one has threads of other tests.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spatial_v2a import Config
from spatial_v2a.conditioning.compiled import has_openvino
from tests.tiny_checkpoint import write_tiny_checkpoint

# What every case begins with; `fork` runs a function in a child and tells what came of it.
BEGINNING = """
import multiprocessing, os, signal, sys
import numpy as np
import torch
from spatial_v2a import SpatialV2A

def fork(work):
    child = os.fork()
    if child == 0:
        signal.alarm(240)  # a busy machine is slow, not stuck
        try:
            print(work(), flush=True)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
        sys.exit(0)
    print("exit", os.waitpid(child, 0)[1], flush=True)

torch.set_num_threads(2)
"""
GRAPH = """
from spatial_v2a.conditioning.compiled import OpenVinoGraph, compile_traced
example = (torch.ones(1, 4),)
def compiled():
    return OpenVinoGraph(compile_traced(torch.jit.trace(torch.nn.Linear(4, 4), example), example))
graph = compiled()
def result(graph):
    return graph(*example)[0].shape
result(graph)
"""
STREAM = """
frame = np.zeros((48, 64, 3), np.uint8)
def opened():
    return SpatialV2A.from_pretrained(sys.argv[1]).stream(nfe=1)
def result(stream):
    return stream.push(frame).shape
stream = opened()
result(stream)
"""
REFUSED = "UserError this process was forked after a network had been compiled"
needs_openvino = pytest.mark.skipif(not has_openvino(), reason="OpenVINO is not installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


def said_by(script: str, *words: object, **environment: str) -> list[str]:
    """Lines on stdout of a Python process that must end by itself."""
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING + script, *map(str, words)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_openvino
def test_a_graph_in_a_fork_is_refused_and_the_fork_exits() -> None:
    """A new graph waited for ever, and so did the exit of a fork that left the old one alone."""
    script = GRAPH + "fork(lambda: 'idle'); fork(lambda: result(graph)); fork(compiled)"
    idle, left, old, old_left, new, new_left = said_by(script)
    assert idle == "idle" and left == old_left == new_left == "exit 0"
    for refusal in (old, new):
        assert refusal.startswith(REFUSED), refusal
        assert 'multiprocessing.get_context("spawn")' in refusal


@needs_openvino
def test_a_stream_in_a_fork_is_refused(checkpoint: Path) -> None:
    """The parent's stream, a new one, one in a pool; without OpenVINO, as the error says, it runs.

    The parent goes on as if nothing had been.
    """
    script = STREAM + (
        "fork(lambda: result(stream)); fork(opened)\n"
        "def in_pool(_): return result(opened())\n"
        "with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "    try: pool.map(in_pool, [0])\n"
        "    except Exception as error: print(type(error).__name__, error, flush=True)\n"
        "def without(): os.environ['SPATIAL_V2A_OPENVINO'] = '0'; return result(opened())\n"
        "fork(without); print(result(stream))"
    )
    old, left, new, new_left, pooled, without, without_left, parent = said_by(script, checkpoint)
    assert all(refusal.startswith(REFUSED) for refusal in (old, new, pooled)), (old, new, pooled)
    assert left == new_left == without_left == "exit 0"
    assert without == parent == "(1600, 2)"


def test_pytorch_alone_goes_on_in_a_fork(checkpoint: Path) -> None:
    """Loading in a fork waited for the threads that had loaded in the parent."""
    script = STREAM.partition("stream = ")[0] + (
        "SpatialV2A.from_pretrained(sys.argv[1]); x = torch.ones(2000, 2000).exp()\n"
        "fork(lambda: torch.ones(2000, 2000).exp().shape)\n"
        "fork(lambda: type(SpatialV2A.from_pretrained(sys.argv[1])).__name__)"
    )
    # Other tests leave one thread in the environment, with which there is no pool.
    said = said_by(script, checkpoint, SPATIAL_V2A_OPENVINO="0", OMP_NUM_THREADS="2")
    assert said == ["torch.Size([2000, 2000])", "exit 0", "SpatialV2A", "exit 0"]

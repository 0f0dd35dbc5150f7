"""A process that trains some blocks of a layer-parallel run, on what the process before it sends."""

from __future__ import annotations

import json

import torch

from localssl.training import monitors
from localssl.training.pipeline.assembly import ROW, STATES, WEIGHTS, Setup, stage
from localssl.training.pipeline.exchange import names, packed, unpack
from localssl.training.pipeline.link import BATCH, END, receive_bytes, send_bytes
from localssl.training.pipeline.place import Place
from localssl.training.pipeline.stage import Stage
from localssl.training.prepared import Prepared, prepare


def work(place: Place, number: int) -> None:
    """From the first stage's message to its last order.

    Args:
        place: of this process.
        number: of this process on its machine: which of several CUDA devices it takes.

    Raises:
        Lost: another process is gone.
    """
    setup = Setup.from_bytes(receive_bytes(place, 0))
    prepared = prepare(setup.run_config(), setup.device, number)
    own = stage(prepared, setup, place)
    _free_others(prepared, own.layers)
    if setup.resumed:
        for _ in own.layers:
            unpack(prepared, receive_bytes(place, 0))
    link = own.link
    assert link is not None
    while True:
        order, x, negatives = link.receive()
        if order == BATCH:
            own.take(x, negatives)
            own.catch_up(prepared.config.staleness)
            continue
        link.send_order(order)
        if order == END:
            link.flush()
            return
        own.catch_up()
        _report(own, place, order)


def _report(own: Stage, place: Place, order: int) -> None:
    """Tell the first stage of these blocks what the order asks for."""
    prepared = own.prepared
    parameters = dict(prepared.learner.named_parameters())
    trained = {name: parameters[name] for i in own.layers for name in names(prepared, i) if name in parameters}
    send_bytes(json.dumps([own.sums.tolist(), monitors.not_finite(trained)]).encode(), place, 0)
    if order & ROW:
        own.sums.zero_()
    if order & (WEIGHTS | STATES):
        for layer in own.layers:
            send_bytes(packed(prepared, layer, bool(order & STATES)), place, 0)


def _free_others(prepared: Prepared, layers: range) -> None:
    """Weights that other processes train take no memory here."""
    own = {name for layer in layers for name in names(prepared, layer)}
    for name, p in prepared.learner.named_parameters():
        if name not in own:
            p.data = torch.empty(0, dtype=p.dtype, device=p.device)

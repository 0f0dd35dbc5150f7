"""A rule of your own: localssl train --rule examples/my_rule.py:MyRule --data digits --out runs/mine
and then: localssl probe runs/mine --own examples/my_rule.py"""

from dataclasses import dataclass

from localssl.rules import Rule


@dataclass(frozen=True, kw_only=True)
class MyRule(Rule):
    """Per layer: pull the views of an image together, keep every unit's spread near one and units apart."""

    apart: float = 0.1  # --rule-options apart=0.2

    def layer_loss(self, batch, layer, projections):
        z = batch.z[layer]  # (2n, d): view a above view b
        pull = (z[: batch.n] - batch.positives(layer)[: batch.n]).square().mean()
        spread = (1 - (z.var(0) + 1e-4).sqrt()).relu().mean()
        off = z.T.cov() - z.T.cov().diagonal().diag()
        return pull + spread + self.apart * off.square().sum() / z.shape[1]

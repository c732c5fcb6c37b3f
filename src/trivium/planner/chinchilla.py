"""How large a model and how many tokens make the best of a number of training FLOPs.

With C = 6 N D FLOPs for N parameters and D tokens and a loss of the form L(N, D) = E + A / N^a + B / D^b, the best N is
G (C / 6)^(b / (a + b)) and D = C / (6 N), where G = (a A / (b B))^(1 / (a + b)) (Hoffmann et al., 2022,
arXiv:2203.15556, equation 4). Three answers:

  fitted     their third approach: E 1.69, A 406.4, B 410.7, a 0.34, b 0.28 (equation 10)
  corrected  the same law fitted anew to their data by Besiroglu et al. (2024, arXiv:2404.10102): E 1.8172, A 482.01,
             B 2085.43, a 0.3478, b 0.3658. They found that the published values fit the data badly and disagree with
             the paper's two other approaches; this one agrees with them.
  rule       20 tokens for each parameter, N = sqrt(C / 120): what those two approaches come to at the paper's scale

They were fitted to decoders of 70 M to 16 B parameters that see each text once; below that, and for text that is read
again, take them as a direction.

Invariant its test checks: no other N of equal FLOPs has a lower loss by the law, and the rule gives 70e9 parameters and
1.4e12 tokens for Chinchilla's budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TOKENS_PER_PARAMETER = 20
FLOPS_PER_PARAMETER_AND_TOKEN = 6


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^a + B / D^b, in nats a token."""

    source: str
    E: float
    A: float
    B: float
    a: float
    b: float

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss it foretells."""
        return float(self.E + self.A / parameters**self.a + self.B / tokens**self.b)

    def best(self, flops: float) -> tuple[float, float]:
        """(N, D) of the lowest loss for so many FLOPs."""
        share = (self.a * self.A / (self.b * self.B)) ** (1 / (self.a + self.b))
        budget = flops / FLOPS_PER_PARAMETER_AND_TOKEN
        parameters = share * budget ** (self.b / (self.a + self.b))
        return parameters, budget / parameters


LAWS = {
    "fitted": Law("Hoffmann et al. 2022, approach 3", 1.69, 406.4, 410.7, 0.34, 0.28),
    "corrected": Law("Besiroglu et al. 2024, approach 3 fitted anew", 1.8172, 482.01, 2085.43, 0.3478, 0.3658),
}
RULE_SOURCE = "20 tokens a parameter (Hoffmann et al. 2022, approaches 1 and 2)"


def by_rule(flops: float) -> tuple[float, float]:
    """(N, D) of 20 tokens a parameter for so many FLOPs."""
    parameters = math.sqrt(flops / (FLOPS_PER_PARAMETER_AND_TOKEN * TOKENS_PER_PARAMETER))
    return parameters, TOKENS_PER_PARAMETER * parameters


def compute_optimal(flops: float) -> dict[str, dict[str, float | str]]:
    """Parameters, tokens and source of each answer."""
    answers = {name: (law.source, *law.best(flops)) for name, law in LAWS.items()}
    answers["rule"] = (RULE_SOURCE, *by_rule(flops))
    return {
        name: {"parameters": round(parameters), "tokens": round(tokens), "source": source}
        for name, (source, parameters, tokens) in answers.items()
    }

"""Do the weights move? A few elements of every trainable tensor, compared with those at the start."""

from typing import Any

import torch  # noqa: TID253  # imported when training begins

PER_TENSOR = 16


class WeightSample:
    """Remembers the sample when it is created. ``model`` is a ``torch.nn.Module``."""

    def __init__(self, model: Any) -> None:
        self._parameters = [weight for weight in model.parameters() if weight.requires_grad]
        self._before = self._take()

    def changed_fraction(self) -> float:
        """Share of the sampled elements that differ from the start. One device sync."""
        return float((self._take() != self._before).float().mean())

    def _take(self) -> torch.Tensor:
        if not self._parameters:
            return torch.zeros(1)
        with torch.no_grad():
            parts = [_own(weight).detach().reshape(-1) for weight in self._parameters]
            return torch.cat([_spread(part).float().clone() for part in parts])


def _own(weight: Any) -> Any:
    """This rank's part of a sharded weight."""
    return weight.to_local() if hasattr(weight, "to_local") else weight


def _spread(flat: torch.Tensor) -> torch.Tensor:
    """At most ``PER_TENSOR`` elements, evenly spaced."""
    return flat[:: max(1, flat.numel() // PER_TENSOR)][:PER_TENSOR]

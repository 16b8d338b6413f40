"""Keys and values of the tokens that a model has read, so that each next token costs one position, not all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mechatlas.io import UserError
from mechatlas.models.config import ModelConfig

Angles = tuple[Tensor, Tensor]


class KeyValueCache:
    """Keys and values by layer, in buffers of a fixed size, for rows that may hold different numbers of tokens.

    The token at position p of a row is kept in slot p. Prompts of different lengths are padded on the right: no
    query sees a later slot, so the padding changes nothing, and `truncate` frees its slots for the next tokens.

    Parameters
    ----------
    config : ModelConfig
    rows : int
        Sequences of the batch, B.
    capacity : int
        Slots of each row, C; memory is 2 L B C Hkv dh numbers.
    device : torch.device
    dtype : torch.dtype

    Attributes
    ----------
    lengths : list of int
        Tokens that each row holds.
    mask : Tensor [B or 1, 1, T, S] or None
        Added to the scores of the T tokens being read: 0 for slots that they may see, -inf for others. None if
        there is nothing to hide, or only what is `causal`.
    causal : bool
        Whether the tokens being read are the first, so that plain causal attention is right.

    Raises
    ------
    UserError
        If ``capacity`` exceeds the model's context.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if capacity > config.n_ctx:
            raise UserError(
                f"{capacity} tokens are more than the model's context of {config.n_ctx}; ask for fewer tokens or "
                "give a shorter prompt"
            )
        shape = (config.n_layers, 2, rows, config.n_kv_heads, capacity, config.d_head)
        # Zeros, because a slot that is hidden by weight 0 must still be a finite number.
        self._buffer = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = [0] * rows
        self.mask: Tensor | None = None
        self.causal = True
        self._width = 0
        self._positions = torch.zeros(1, 0, dtype=torch.long, device=device)
        self._angles: Angles | None = None

    @property
    def capacity(self) -> int:
        """Slots of each row."""
        return self._buffer.shape[-2]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget what rows hold beyond a number of tokens each, such as padding on the right."""
        if any(new > old for new, old in zip(lengths, self.lengths, strict=True)):
            raise ValueError(
                f"rows hold {self.lengths} tokens and cannot be cut to {list(lengths)}"
            )
        self.lengths = [int(length) for length in lengths]

    def begin(self, width: int) -> Tensor:
        """Make ready for ``width`` more tokens of every row; return their positions ``[B or 1, T]``."""
        longest = max(self.lengths) + width
        if longest > self.capacity:
            raise UserError(
                f"a row of {max(self.lengths)} tokens has no room for {width} more in a cache of {self.capacity}; "
                "make the cache larger"
            )
        self._width = width
        starts = self.lengths if len(set(self.lengths)) > 1 else self.lengths[:1]
        device = self._buffer.device
        begins = torch.tensor(starts, device=device)[:, None]
        self._positions = begins + torch.arange(width, device=device)
        self.causal = longest == width
        self.mask = None
        if not self.causal and (width > 1 or len(starts) > 1):
            hidden = torch.arange(longest, device=device) > self._positions[..., None]
            mask = torch.zeros(hidden.shape, dtype=self._buffer.dtype, device=device)
            self.mask = mask.masked_fill_(hidden, -math.inf)[:, None]
        return self._positions

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values ``[B, T, Hkv, dh]`` of the tokens being read; return all, ``[B, S, Hkv, dh]``."""
        if k.requires_grad or v.requires_grad:
            raise ValueError("a cache holds no gradients; run the model without one")
        stop = max(self.lengths) + self._width
        both = self._buffer[layer]
        if len(self._positions) == 1:
            both[0, :, :, stop - self._width : stop] = k.transpose(1, 2)
            both[1, :, :, stop - self._width : stop] = v.transpose(1, 2)
        else:
            rows = torch.arange(len(k), device=k.device)[:, None]
            both[0].transpose(1, 2)[rows, self._positions] = k
            both[1].transpose(1, 2)[rows, self._positions] = v
        keys, values = both[:, :, :, :stop].transpose(2, 3)
        return keys, values

    def commit(self) -> None:
        """Count the tokens being read as held, once every layer has its keys and values."""
        self.lengths = [length + self._width for length in self.lengths]

    def angles(self, table: Callable[[int], Angles | None]) -> Angles | None:
        """Return the rotary cosines and sines of the tokens being read, ``[B or 1, T, 1, dh]``.

        ``table`` gives those of the first positions (`Transformer.rotary`); it is asked once.
        """
        if self._angles is None:
            self._angles = table(self.capacity)
        return self._angles and tuple(part[self._positions] for part in self._angles)

"""Where a text is read."""

import torch


def last_token(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position of each text's last real token, whatever side the padding is on.

    Args:
        attention_mask: `[B,T]`, 1 at real tokens.

    Returns:
        `[B]`, int64.

    Raises:
        ValueError: A text has no real token.
    """
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device) + 1  # [T]
    last = (attention_mask.bool() * positions).amax(dim=1) - 1  # [B,T] → [B]
    if bool((last < 0).any()):
        empty = [int(row) for row in (last < 0).nonzero().flatten()]
        raise ValueError(f"The texts at positions {empty} of the batch have no token that is not padding.")
    return last

"""Output channels in blocks of vectors, as plans of register tiles have them."""

from __future__ import annotations

from convtune.schedules.tiling import ceil_div


class ChannelBlocks:
    """Of a plan whose register tiles have `vectors` vectors of output channels: the blocks that these make."""

    channels: int
    vectors: int
    lanes: int

    @property
    def block(self) -> int:
        """Channels of a block."""
        return self.vectors * self.lanes

    @property
    def blocks(self) -> int:
        return ceil_div(self.channels, self.block)

    @property
    def last_channels(self) -> int:
        """Of the last block."""
        return self.channels - (self.blocks - 1) * self.block

    @property
    def last_vectors(self) -> int:
        """Of the last block."""
        return ceil_div(self.last_channels, self.lanes)

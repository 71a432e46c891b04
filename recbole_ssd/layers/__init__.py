"""Layers: nn.Modules over packed streams, (b, l, d) in and out, with segments beside them."""

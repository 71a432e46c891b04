"""Ops: tensors in, tensors out. Nothing here knows of RecBole."""

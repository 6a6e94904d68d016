"""logits -> ids: how text is generated."""

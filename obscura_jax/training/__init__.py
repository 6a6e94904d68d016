"""batches -> parameters: how a model is trained (chapter 5)."""

"""Functions on tensors that training shows and evaluation reports."""

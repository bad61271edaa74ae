"""Pure functions on tensors; they know no client, server or method."""

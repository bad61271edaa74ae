"""The figures, one file each, in one style."""

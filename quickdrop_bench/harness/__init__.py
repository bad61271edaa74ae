"""From frozen specs to rows."""
